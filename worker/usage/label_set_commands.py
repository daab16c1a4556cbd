"""`label-sets put`, `list`, `show`, `delete` and `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("The label sets that requests name, in topics.label_sets.", name="label-sets")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="TOML or JSON: a set, or several under sets")]
Name = Annotated[str | None, typer.Option("--name", "-n", metavar="NAME", help="of the set, if its file has none")]


@grouping.command(
    app,
    "put",
    examples=[
        "xnli-worker label-sets put -c worker.toml moderation.toml",
        "xnli-worker label-sets put -c worker.toml --model demo --name moods moods.json",
    ],
)
def put(
    files: Files,
    name: Name = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="a model into whose window each hypothesis must fit: a hub id, a directory"),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Check sets, write those that changed, and say how."""
    StopFlag(interrupt=True)
    from worker.commands import label_set_changes  # noqa: PLC0415

    label_set_changes.put(config, files, name=name, model=model, as_json=as_json)
    return 0


@grouping.command(app, "list", examples=["xnli-worker label-sets list -c worker.toml"])
def list_label_sets(config: ConfigFile = None, as_json: Json = False) -> int:
    """A table on a terminal, JSON lines in a pipe."""
    StopFlag(interrupt=True)
    from worker.commands import label_set_listing  # noqa: PLC0415

    label_set_listing.list_label_sets(config, as_json=as_json)
    return 0


@grouping.command(app, "show", examples=["xnli-worker label-sets show -c worker.toml moderation > moderation.json"])
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the set")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """One set: a tree on a terminal, in a pipe the JSON that put takes."""
    StopFlag(interrupt=True)
    from worker.commands import label_set_listing  # noqa: PLC0415

    label_set_listing.show(config, name, as_json=as_json)
    return 0


@grouping.command(app, "delete", examples=["xnli-worker label-sets delete -c worker.toml --yes moods"])
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="of the sets")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="without being asked")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Take sets away: requests that name one become dead letters."""
    StopFlag(interrupt=True)
    from worker.commands import label_set_changes  # noqa: PLC0415

    label_set_changes.delete(config, names, asks=not yes, as_json=as_json)
    return 0


@grouping.command(app, "diff", examples=["xnli-worker label-sets diff -c worker.toml moderation.toml"])
def diff(files: Files, name: Name = None, config: ConfigFile = None, as_json: Json = False) -> int:
    """How files differ from the topic; exit code 1 if they do."""
    StopFlag(interrupt=True)
    from worker.commands import label_set_changes  # noqa: PLC0415

    return 0 if label_set_changes.diff(config, files, name=name, as_json=as_json) else 1
