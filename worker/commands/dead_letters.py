"""`xnli-worker dead-letters list` and `show`: what the dead-letter topic holds, read as a stream and never whole.

They join no group and commit nothing, so they may run anywhere at any time. The third is
`worker.commands.dead_letters_replay`.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from rich.console import Console

from worker.avro.registry import Codecs, open_codecs
from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.commands.tail import describe, json_line
from worker.errors import BrokerAway, NoSuchDeadLetter, Reason, RegistryAway, SettingsError
from worker.kafka import client_config
from worker.kafka.client_errors import PARTITION_END
from worker.messages import Headers, Partition, Position, Record
from worker.rules.replay import Letter, Selection
from worker.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed

_TIMEOUT_S: Final = 10.0
# Rows of one table on a terminal: enough for columns that fit, few enough that the first appear soon.
_PAGE_ROWS: Final = 200
_COLUMNS: Final = ("position", "reason", "stage", "origin", "age", "attempts", "replays")
_LEAST_MESSAGE_CHARS: Final = 20
_AGE: Final = re.compile(r"(\d{1,5})([smhd])", re.ASCII)
_UNIT_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


# What is asked for ----------------------------------------------------------------------------------------------------


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
        at = datetime.now().astimezone() - timedelta(seconds=int(age[1]) * _UNIT_S[age[2]])
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


# Reading --------------------------------------------------------------------------------------------------------------


class Extent(NamedTuple):
    """The offsets a partition holds: ``begin`` included, ``end`` not."""

    begin: int
    end: int


class DeadLetterReader:
    """Reads the dead-letter topic up to where it ends when asked, by committed records only.

    Partitions are assigned by hand. ``group`` is joined by nobody; its committed offsets may be read, and moved by a
    transaction (`group_metadata`).
    """

    def __init__(self, settings: Settings, client: str, group: str | None = None) -> None:
        self._kafka = settings.kafka
        self.topic = settings.topics.dead_letter
        self._reports = Reports(say)
        config = client_config.consumer(settings.kafka)  # the worker's, so that whatever lets it in lets us in
        config.pop("group.instance.id", None)
        config |= {
            "client.id": f"{settings.kafka.group_id}-{client}",
            "enable.partition.eof": True,
            # We read faster than a model does: after its default of a second the queue would long be empty.
            "fetch.queue.backoff.ms": 10,
        }
        if group is not None:
            config["group.id"] = group
        self._consumer = connection.connect(Consumer, config, self._reports)

    def cluster(self) -> ClusterMetadata:
        """What the cluster says of itself. Raises BrokerAway."""
        return connection.metadata(self._consumer, self._kafka, self._reports, _TIMEOUT_S)

    def extents(self) -> dict[int, Extent]:
        """What each partition holds now, up to the first transaction that is still open.

        Raises:
            BrokerAway: no answer in time.
            TopicMissing: there is no such topic.
        """
        numbers = connection.partitions(self._consumer, self._kafka, self._reports, self.topic, _TIMEOUT_S)
        with self._answers():
            # Of a read_committed consumer the end is the last stable offset, so it is never waited for.
            return {n: Extent(*self._consumer.get_watermark_offsets(self._at(n), timeout=_TIMEOUT_S)) for n in numbers}

    def committed(self, numbers: Sequence[int]) -> dict[int, int]:
        """The group's committed offsets, where it has any; waits for a transaction that is about to move them."""
        with self._answers():
            found = self._consumer.committed([self._at(number) for number in numbers], timeout=_TIMEOUT_S)
        return {position.partition: position.offset for position in found if position.offset >= 0}

    def not_before(self, since_ms: int, extents: Mapping[int, Extent]) -> dict[int, int]:
        """Offsets before which no record has a timestamp of ``since_ms`` or later, by the broker's time index.

        The index may miss records of exactly the time asked for (their batch's last is noted), so a millisecond less
        is asked for; what comes too early, the selection passes over.
        """
        asked = [self._at(number, max(0, since_ms - 1)) for number in extents]
        with self._answers():
            found = self._consumer.offsets_for_times(asked, timeout=_TIMEOUT_S)
        # Negative: there is none.
        return {p.partition: p.offset if p.offset >= 0 else extents[p.partition].end for p in found}

    def destination(self, topic: str) -> None:
        """Make sure that a topic is there. Raises TopicMissing or BrokerAway."""
        connection.partitions(self._consumer, self._kafka, self._reports, topic, _TIMEOUT_S)

    def read(
        self, starts: Mapping[int, int], extents: Mapping[int, Extent], stop_requested: Callable[[], bool]
    ) -> Iterator[Message]:
        """The records of each partition from its start to the end of its extent, as they come.

        A broker that goes away is waited for. Raises FatalError if the client cannot go on.
        """
        unread = {number for number, extent in extents.items() if starts[number] < extent.end}
        self._consumer.assign([self._at(number, starts[number]) for number in sorted(unread)])
        while unread and not stop_requested():
            message = self._consumer.poll(0.2)
            self._reports.check()
            if message is None:
                continue
            error, number, offset = message.error(), cast("int", message.partition()), cast("int", message.offset())
            if error is not None and error.code() != PARTITION_END:
                self._reports(error)
                continue
            end = extents[number].end
            # Behind the last record may lie markers of transactions, which no client sees: the end of the partition
            # is reported by itself.
            if error is None and offset < end and number in unread:
                yield message
            if (offset if error is not None else offset + 1) >= end:
                unread.discard(number)

    def group_metadata(self) -> Any:
        """For the transaction that moves the group's offsets."""
        return self._consumer.consumer_group_metadata()

    def owns(self, _: object) -> bool:
        """True: partitions are read without a group, so none ever leaves."""
        return True

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def _at(self, number: int, offset: int = 0) -> TopicPartition:
        return TopicPartition(self.topic, number, offset)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise BrokerAway(f"{self.topic}: {error.args[0].str()}; try again when the broker is well") from None


@contextmanager
def reading(settings: Settings, client: str, group: str | None = None) -> Iterator[DeadLetterReader]:
    """A reader for as long as the block lasts."""
    reader = DeadLetterReader(settings, client, group)
    try:
        yield reader
    finally:
        reader.close()


def first_offsets(reader: DeadLetterReader, extents: Mapping[int, Extent], selection: Selection) -> dict[int, int]:
    """Where each partition's first letter of the selection may lie."""
    starts = {number: extent.begin for number, extent in extents.items()}
    if selection.since_ms is not None:
        later = reader.not_before(selection.since_ms, extents)
        starts = {number: max(start, later[number]) for number, start in starts.items()}
    return starts


def letter_of(message: Message) -> Letter:
    """The letter a message of the client holds."""
    kind, timestamp_ms = message.timestamp()
    partition = Partition(cast("str", message.topic()), cast("int", message.partition()))
    return Letter(
        Record(
            position=Position(partition, cast("int", message.offset()), epoch=0),
            key=message.key(),
            value=message.value(),
            headers=cast("Headers", tuple(message.headers() or ())),
            timestamp_ms=timestamp_ms if kind else -1,  # 0 is TIMESTAMP_NOT_AVAILABLE
        )
    )


# Showing --------------------------------------------------------------------------------------------------------------


class Listing:
    """Letters on stdout: a table on a terminal, JSON lines in a pipe. ``close`` writes what is left.

    On a terminal a page of rows is held for its columns to fit, and has a head of its own. Only the message is cut to
    the terminal's width: a position or a topic that is not whole is of no use.
    """

    def __init__(self, remark: str | None = None) -> None:
        self._head = [*_COLUMNS, *([remark] if remark is not None else []), "message"]
        self._remark = remark  # name of a further column
        self._page: list[list[str]] = []
        self._as_table = sys.stdout.isatty()

    def write(self, letter: Letter, remark: str = "") -> None:
        """One letter, with what is to be said in the further column."""
        shown = summary(letter)
        if not self._as_table:
            sys.stdout.buffer.write(json_line(shown if self._remark is None else shown | {self._remark: remark}))
            return
        said = letter.said
        cells = [
            shown["position"],
            said.get("reason", "?"),
            said.get("stage", "?"),
            f"{said.get('topic', '?')}/{said.get('partition', '?')}/{said.get('offset', '?')}",
            _age(letter.record.timestamp_ms),
            said.get("attempts", "?"),
            str(letter.replays),
            *([remark] if self._remark is not None else []),
            said.get("message", ""),
        ]
        self._page.append([_printable(cell) for cell in cells])
        if len(self._page) == _PAGE_ROWS:
            self.close()

    def close(self) -> None:
        """Write what waits for its page to fill."""
        if self._page:
            rows = [self._head, *self._page]
            widths = [max(map(len, column)) + 2 for column in zip(*(row[:-1] for row in rows), strict=True)]
            left = max(_LEAST_MESSAGE_CHARS, shutil.get_terminal_size().columns - sum(widths))
            for row in rows:
                cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
                sys.stdout.write("".join(cells) + row[-1][:left] + "\n")
            self._page.clear()
        sys.stdout.flush()


def summary(letter: Letter) -> dict[str, Any]:
    """A letter as one JSON object without its payload. What its headers do not say is null."""
    record, said = letter.record, letter.said
    partition = record.position.partition
    return {
        "position": f"{partition.number}:{record.position.offset}",
        "timestamp": record.timestamp_ms if record.timestamp_ms >= 0 else None,
        "key": letter.key,
        **{name: said.get(name) for name in ("reason", "stage", "error", "message")},
        "origin": {"topic": said.get("topic")}
        | {name: letter.number(name) for name in ("partition", "offset", "timestamp")},
        "attempts": letter.number("attempts"),
        "replays": letter.replays,
        "group": said.get("group"),
        "worker": said.get("worker"),
        "truncated": letter.number("truncated"),
    }


def _age(timestamp_ms: int) -> str:
    if timestamp_ms < 0:
        return "?"
    seconds = max(0, int(time.time() - timestamp_ms / 1000))
    unit = next((unit for unit, length_s in _UNIT_S.items() if seconds >= 2 * length_s), "s")
    return f"{seconds // _UNIT_S[unit]}{unit}"


def _printable(text: str) -> str:
    """Text of a stranger as a terminal may see it: in one line, and without the means to steer it."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


# The commands ---------------------------------------------------------------------------------------------------------


def list_letters(
    config: Path | None, selection: Selection, *, limit: int | None, stop_requested: Callable[[], bool]
) -> None:
    """Write the letters of a selection, at most ``limit``, the oldest of each partition first.

    Raises:
        SettingsError: the settings are wrong.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    settings = connection.load_settings(config)
    listing, written = Listing(), 0
    with reading(settings, "dead-letters") as reader:
        extents = reader.extents()
        for message in reader.read(first_offsets(reader, extents, selection), extents, stop_requested):
            letter = letter_of(message)
            if selection.takes(letter):
                listing.write(letter)
                written += 1
            if written == limit:
                break
    listing.close()
    if sys.stdout.isatty():
        say(f"{'the first ' if written == limit else ''}{written:,} dead letter{'' if written == 1 else 's'}")


def show(config: Path | None, position: str) -> None:
    """Write one letter whole, as `tail --dead-letters` does; indented on a terminal.

    The payload is decoded as far as it can be: else ``error`` says why not, and ``value_base64`` is its first KiB.

    Raises:
        SettingsError: the settings or the position are wrong.
        NoSuchDeadLetter: nothing lies there.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    number, offset = _position(position)
    settings = connection.load_settings(config)
    codecs = open_codecs(settings.schema_registry)
    with reading(settings, "dead-letters") as reader:
        held = {n: extent for n, extent in reader.extents().items() if n == number}
        found = held.get(number, Extent(0, 0))
        if not found.begin <= offset < found.end:
            where = f"holds {found.begin} to {found.end - 1}" if found.begin < found.end else "is empty"
            raise NoSuchDeadLetter(
                f"{reader.topic} has no record {position}: its partition {number} {where if held else 'does not exist'}"
            )
        message = next(reader.read({number: offset}, held, lambda: False), None)
    if message is None or message.offset() != offset:
        raise NoSuchDeadLetter(
            f"{reader.topic} has no record {position}: only a transaction's marker, or a record that was deleted"
        )
    try:
        shown = describe(message, codecs, dead_letters=True)
    except RegistryAway as away:
        shown = describe(message, Codecs(), dead_letters=True) | {"error": str(away)}
    line = json_line(shown)
    if sys.stdout.isatty():
        Console(highlight=False).print_json(line.decode())
    else:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
