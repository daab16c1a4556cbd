"""`topics create` and `topics check`."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from worker.usage import grouping
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("The topics that the settings name, as they are declared.", name="topics")

Partitions = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="of requests, results and retries, in place of the declared 12"),
]


@grouping.command(app, "create", examples=["xnli-worker topics create -c worker.toml"])
def create(
    config: ConfigFile = None,
    partitions: Partitions = None,
    schemas: Annotated[
        bool, typer.Option("--schemas", help="register the schemas of requests and results too, in the registry")
    ] = False,
    as_json: Json = False,
) -> int:
    """Create the topics that are missing; change none that is there."""
    from worker.commands import topic_declaration  # noqa: PLC0415

    done = topic_declaration.create(config, partitions=partitions, schemas=schemas, as_json=as_json)
    return 0 if done else 1


@grouping.command(app, "check", examples=["xnli-worker topics check -c worker.toml"])
def check(config: ConfigFile = None, partitions: Partitions = None, as_json: Json = False) -> int:
    """Say which topics are missing or differ from their declaration."""
    from worker.commands import topic_declaration  # noqa: PLC0415

    return 0 if topic_declaration.check(config, partitions=partitions, as_json=as_json) else 1
