"""`config init`, `show` and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from worker.usage import grouping
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("A settings file to begin with, and what is in force.", name="config")


@grouping.command(app, "init", examples=["xnli-worker config init worker.toml"])
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="where to write it; - is stdout")] = Path(
        "worker.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
) -> int:
    """Write a settings file that explains itself."""
    from worker.commands import config  # noqa: PLC0415

    config.init(file, force=force)
    return 0


@grouping.command(app, "show", examples=["xnli-worker config show --config worker.toml"])
def show(config: ConfigFile = None, as_json: Json = False) -> int:
    """Every setting in force and where it comes from, secrets masked."""
    from worker.commands import config as settings  # noqa: PLC0415

    settings.show(config, as_json=as_json)
    return 0


@grouping.command(app, "schema", examples=["xnli-worker config schema > worker.schema.json"])
def schema() -> int:
    """A JSON Schema of the settings file, for editors."""
    from worker.commands import config  # noqa: PLC0415

    config.schema()
    return 0
