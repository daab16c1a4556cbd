"""`dead-letters list`, `show` and `replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.options import (
    ConfigFile,
    Json,
    Key,
    OriginPartition,
    OriginTopic,
    Reasons,
    Replays,
    Since,
    Until,
)

if TYPE_CHECKING:
    from worker.rules.replay import Selection

app: Final = grouping.group("List, show or replay what could not be answered.", name="dead-letters")


def _selection(
    reason: list[str] | None,
    since: str | None,
    until: str | None,
    topic: str | None,
    partition: int | None,
    key: str | None,
    replays: int | None,
    *,
    ages: bool,
) -> Selection:
    from worker.commands.dead_letters import select  # noqa: PLC0415

    return select(
        reasons=reason or (),
        since=since,
        until=until,
        topic=topic,
        partition=partition,
        key=key,
        replays=replays,
        ages=ages,
    )


@grouping.command(
    app,
    "list",
    examples=[
        "xnli-worker dead-letters list -c worker.toml --since 2h",
        "xnli-worker dead-letters list -c worker.toml --reason inference",
    ],
)
def list_dead_letters(
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    topic: OriginTopic = None,
    partition: OriginPartition = None,
    key: Key = None,
    replays: Replays = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="stop after N dead letters")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """A table on a terminal, JSON lines in a pipe."""
    from worker.commands.dead_letters import list_dead_letters as write_list  # noqa: PLC0415

    selection = _selection(reason, since, until, topic, partition, key, replays, ages=True)
    write_list(config, selection, limit=limit, as_json=as_json, stop_requested=StopFlag(""))
    return 0


@grouping.command(app, "show", examples=["xnli-worker dead-letters show -c worker.toml 0:17"])
def show(
    position: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="where it lies in the dead-letter topic")],
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """One dead letter whole: headers, key and payload."""
    StopFlag(interrupt=True)
    from worker.commands.dead_letters import show as write_one  # noqa: PLC0415

    write_one(config, position, as_json=as_json)
    return 0


@grouping.command(
    app,
    "replay",
    examples=[
        "xnli-worker dead-letters replay -c worker.toml --since 2h --dry-run",
        "xnli-worker dead-letters replay -c worker.toml --since 2h --rate 100",
    ],
)
def replay(
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    topic: OriginTopic = None,
    partition: OriginPartition = None,
    key: Key = None,
    replays: Replays = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="destination (default: the topic each request came from)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would be sent, and send nothing")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="send at most N in this run")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="send all, without a filter and without being asked")
    ] = False,
    rate: Annotated[int | None, typer.Option(metavar="N", min=1, help="send at most N a second")] = None,
    max_replays: Annotated[int, typer.Option(metavar="N", min=1, help="refuse those replayed N times")] = 3,
    campaign: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="keeps the progress under this name (default: one derived from filters and --to; other filters are "
            "another campaign, and may send the same again)",
        ),
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Send dead letters as requests, each once; resumes if broken off."""
    from worker.commands.dead_letters_replay import replay as send_again  # noqa: PLC0415

    done = send_again(
        config,
        _selection(reason, since, until, topic, partition, key, replays, ages=False),
        to=to,
        max_replays=max_replays,
        campaign=campaign,
        limit=limit,
        rate=rate,
        dry_run=dry_run,
        asks=not yes,
        as_json=as_json,
        stop_requested=StopFlag("stopping after the transaction that is open"),
    )
    return 0 if done else 1
