"""`xnli-worker dead-letters list` and `show`: what the dead-letter topic holds.

They join no group and commit nothing, so they may run anywhere at any time. The third is
`worker.commands.dead_letters_replay`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.highlighter import JSONHighlighter

from worker.avro.codec import Codecs, open_codecs
from worker.commands import connection, dead_letter_topic
from worker.commands.connection import say
from worker.commands.dead_letter_listing import UNITS_S, Listing
from worker.commands.json_lines import describe, is_wanted, json_line, json_text
from worker.errors import NoSuchDeadLetter, Reason, RegistryAway, SettingsError
from worker.kafka.reader import Extent
from worker.rules.replay import Selection

_AGE: Final = re.compile(r"(\d{1,5})([smhd])", re.ASCII)


def select(
    *,
    reasons: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    topic: str | None = None,
    partition: int | None = None,
    key: str | None = None,
    replays: int | None = None,
    ages: bool = True,
) -> Selection:
    """A selection from the command line's words; see `worker.rules.replay.Selection` for what they mean.

    With ``ages`` False an age will not do as a time: the selection has to mean the same when it is asked again later.

    Raises:
        SettingsError: a word is not understood; it says which and what would be.
    """
    for reason in reasons:
        if reason not in list(Reason):
            raise SettingsError(f"--reason {reason!r}: no such reason; there are {', '.join(Reason)}")
    since_ms, until_ms = _time_ms("--since", since, ages=ages), _time_ms("--until", until, ages=ages)
    return Selection(frozenset(reasons), since_ms, until_ms, topic, partition, key, replays)


def _time_ms(option: str, text: str | None, *, ages: bool) -> int | None:
    """Milliseconds since 1970 of an ISO 8601 time (local, if it names no zone) or of an age."""
    if text is None:
        return None
    if (age := _AGE.fullmatch(text)) is not None:
        at = datetime.now().astimezone() - timedelta(seconds=int(age[1]) * UNITS_S[age[2]])
        if not ages:
            raise SettingsError(
                f"{option} {text}: an age moves with the clock, and a replay that was broken off could not go on "
                f"where it stood; write the time: {option} {at.isoformat(timespec='seconds')}"
            )
    else:
        try:
            at = datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError):
            raise SettingsError(
                f"{option} {text!r}: write a time (2026-01-31T12:00:00+00:00) or an age (90s, 15m, 2h, 3d)"
            ) from None
    return int(at.timestamp() * 1000)


def _position(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9}):(\d{1,18})", text, re.ASCII)
    if found is None:
        raise SettingsError(f"{text!r}: write the position as PARTITION:OFFSET, as `dead-letters list` shows it")
    return int(found[1]), int(found[2])


def list_dead_letters(
    config: Path | None,
    selection: Selection,
    *,
    limit: int | None,
    stop_requested: Callable[[], bool],
    as_json: bool = False,
) -> None:
    """Write the dead letters of a selection, at most ``limit``, the oldest of each partition first.

    Raises:
        SettingsError: the settings are wrong.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    settings = connection.load_settings(config)
    listing, written = Listing(open_codecs(settings.schema_registry), as_json=as_json), 0
    with dead_letter_topic.opened(settings, "dead-letters") as topic:
        extents = topic.extents()
        for dead_letter in topic.read(topic.first_offsets(extents, selection), extents, stop_requested):
            if selection.takes(dead_letter):
                listing.write(dead_letter)
                written += 1
            if written == limit:
                break
    listing.close()
    if not is_wanted(as_json):
        say(f"{'the first ' if written == limit else ''}{written:,} dead letter{'' if written == 1 else 's'}")


def show(config: Path | None, position: str, *, as_json: bool = False) -> None:
    """Write one dead letter whole, as `tail --dead-letters` does; indented on a terminal.

    The payload is decoded as far as it can be: else ``error`` says why not, and ``value_base64`` is its first KiB.

    Raises:
        SettingsError: the settings or the position are wrong.
        NoSuchDeadLetter: nothing lies there.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    number, offset = _position(position)
    settings = connection.load_settings(config)
    codecs = open_codecs(settings.schema_registry)
    with dead_letter_topic.opened(settings, "dead-letters") as topic:
        held = {n: extent for n, extent in topic.extents().items() if n == number}
        begin, end = held.get(number, Extent(0, 0))
        if not begin <= offset < end:
            where = f"holds {begin} to {end - 1}" if begin < end else "is empty"
            raise NoSuchDeadLetter(
                f"{topic.name} has no record {position}: its partition {number} {where if held else 'does not exist'}"
            )
        found = next(topic.read({number: offset}, held, lambda: False), None)
    if found is None or found.record.position.offset != offset:
        raise NoSuchDeadLetter(
            f"{topic.name} has no record {position}: only a transaction's marker, or a record that was deleted"
        )
    try:
        shown = describe(found.record, codecs, dead_letters=True)
    except RegistryAway as away:
        shown = describe(found.record, Codecs(), dead_letters=True) | {"error": str(away)}
    if not is_wanted(as_json):
        Console(highlight=False).print(JSONHighlighter()(json_text(shown, indent=2)), soft_wrap=True)
    else:
        sys.stdout.buffer.write(json_line(shown))
        sys.stdout.buffer.flush()
