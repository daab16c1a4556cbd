"""Options that several commands have, declared once, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.errors import Reason

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML settings; XNLI_<SECTION>__<KEY> variables override them"),
]
Json = Annotated[
    bool, typer.Option("--json", help="JSON, an object a line, on a terminal too (in a pipe it is always so)")
]


def _reasons() -> list[str]:
    return list(Reason)


Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="R", autocompletion=_reasons, help="this reason; may be given again"),
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="those of this time or later: ISO 8601, or an age (list)")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="those before this time")]
OriginTopic = Annotated[
    str | None, typer.Option("--topic", metavar="TOPIC", help="requests that first came from this topic")
]
OriginPartition = Annotated[
    int | None, typer.Option("--partition", metavar="N", min=0, help="requests that first came from this partition")
]
Key = Annotated[str | None, typer.Option("--key", metavar="KEY", help="requests with this key")]
Replays = Annotated[int | None, typer.Option("--replays", metavar="N", min=0, help="requests replayed N times already")]
