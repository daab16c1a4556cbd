"""`send` and `tail`: requests in, results out."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.grouping import Section
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("Requests and results.")


@grouping.command(
    app,
    "send",
    section=Section.MESSAGES,
    examples=[
        "xnli-worker send -c worker.toml --wait requests.jsonl",
        "xnli-worker send -c worker.toml --labels praise,complaint reviews.csv",
    ],
)
def send(
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE]", help="JSON lines, arrays or objects, or CSV with a column text; - is stdin"),
    ] = "-",
    labels: Annotated[
        str, typer.Option("--labels", "-l", metavar="A,B,C", help="for requests that name none; or a JSON array")
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="write the results of these requests, as tail does")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="S", min=0.1, help="how long to wait for the results")] = 60.0,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Requests as JSON or CSV become Avro on the input topic."""
    StopFlag(interrupt=True)
    from worker.commands.send import send as send_all  # noqa: PLC0415

    wait_s = timeout if wait else None
    return 0 if send_all(file, config, labels=labels, wait_s=wait_s, as_json=as_json) else 1


@grouping.command(
    app,
    "tail",
    section=Section.MESSAGES,
    examples=[
        "xnli-worker tail -c worker.toml --last 10",
        "xnli-worker tail -c worker.toml --dead-letters --from-beginning",
        "xnli-worker tail -c worker.toml --last 99 --count 99 > results.jsonl",
    ],
)
def tail(
    config: ConfigFile = None,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="follow the dead-letter topic instead")] = False,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="stop after N records")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="begin at the oldest record")] = False,
    last: Annotated[int | None, typer.Option("--last", "-n", metavar="N", min=1, help="begin with the last N")] = None,
    offset: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="begin at this offset, of --partition or of each")
    ] = None,
    partition: Annotated[int | None, typer.Option(metavar="N", min=0, help="this partition alone")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="records with this key")] = None,
    id_: Annotated[str | None, typer.Option("--id", metavar="ID", help="the answers to requests with this id")] = None,
    as_json: Json = False,
) -> int:
    """Results, or dead letters, as they arrive; it begins at the end unless told otherwise."""
    from worker.commands.tail import Begin, Choice  # noqa: PLC0415
    from worker.commands.tail import tail as follow  # noqa: PLC0415

    done = follow(
        config,
        dead_letters=dead_letters,
        count=count,
        begin=Begin(from_beginning=from_beginning, last=last, offset=offset),
        choice=Choice(partition=partition, key=key, id=id_),
        as_json=as_json,
        stop_requested=StopFlag(""),
    )
    return 0 if done else 1
