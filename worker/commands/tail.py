"""`xnli-worker tail`: results, or dead letters, from all partitions and as they arrive.

It takes no part in the worker's group: partitions are assigned by hand and nothing is committed, so it may run
anywhere at any time. Partitions added to the topic later are not followed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING

from worker.avro.codec import Codecs, open_codecs
from worker.commands import connection
from worker.commands.connection import Reports, Waiting, say
from worker.commands.json_lines import describe, text_of
from worker.commands.record_lines import RecordLines
from worker.errors import BrokerAway, RegistryAway, SettingsError, TopicMissing
from worker.kafka.reader import Extent, Reader
from worker.messages import Record
from worker.screen import plural
from worker.settings import KafkaSettings

_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Begin:
    """Where to begin: at most one is set; none means the end.

    ``last`` so many records, whatever their partition; ``offset`` in each partition that is read.
    """

    from_beginning: bool = False
    last: int | None = None
    offset: int | None = None

    def __post_init__(self) -> None:
        if self.from_beginning + (self.last is not None) + (self.offset is not None) > 1:
            raise SettingsError("--from-beginning, --last and --offset exclude each other: keep one")

    def __str__(self) -> str:
        if self.last is not None:
            return f"its last {plural(self.last, 'record')}"
        if self.offset is not None:
            return f"offset {self.offset}"
        return "its beginning" if self.from_beginning else "its end"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records: those that pass every filter that is set."""

    partition: int | None = None
    key: str | None = None
    id: str | None = None


def tail(
    config: Path | None,
    *,
    dead_letters: bool,
    count: int | None,
    begin: Begin,
    choice: Choice,
    stop_requested: Callable[[], bool],
    as_json: bool = False,
) -> bool:
    """Write each record, until ``count`` are written or ``stop_requested``. Always True.

    In a pipe, and with ``as_json``, a record is one JSON object a line: ``topic``, ``partition``, ``offset``,
    ``timestamp`` (ms since 1970, or null), ``key`` and ``headers`` as text (a list where several bear one name); then
    ``result``, or for dead letters ``request``: the decoded datum, or null for a record without a value. Where a value
    cannot be decoded there is ``error``, and ``value_base64`` of its first KiB.

    A broker, topic or registry that is away is waited for, and stderr says so.

    Raises:
        SettingsError: the settings are wrong.
        FatalError: the client cannot go on.
    """
    settings = connection.load_settings(config)
    topic = settings.topics.dead_letter if dead_letters else settings.topics.output
    reports = Reports(say)
    reader = connection.open_reader(settings.kafka, topic, reports, client="tail")
    following = _Following(
        reader,
        open_codecs(settings.schema_registry),
        choice,
        RecordLines(as_json=as_json),
        stop_requested,
        dead_letters,
    )
    try:
        following.run(settings.kafka, reports, begin, count)
    finally:
        reader.close()
    return True


class _Following:
    """One run of `tail`."""

    def __init__(
        self,
        reader: Reader,
        codecs: Codecs,
        choice: Choice,
        lines: RecordLines,
        stop_requested: Callable[[], bool],
        dead_letters: bool,
    ) -> None:
        self._reader = reader
        self._codecs = codecs
        self._choice = choice
        self._lines = lines
        self._stop_requested = stop_requested
        self._dead_letters = dead_letters

    def run(self, kafka: KafkaSettings, reports: Reports, begin: Begin, count: int | None) -> None:
        extents = self._extents(kafka, reports)
        if not extents:
            return  # told to stop before there was anything
        starts = {number: _start(begin, extent) for number, extent in extents.items()}
        say(f"following {self._reader.topic} from {begin}, partitions: {len(starts)}")
        written = 0
        if begin.last is not None:
            for shown in self._last(begin.last, extents):
                if written != count:
                    self._lines.write(shown)
                    written += 1
        self._reader.assign(starts)
        while not self._stop_requested() and written != count:
            record = self._reader.poll(0.2)
            if record is not None and (found := self._chosen(record)) is not None:
                self._lines.write(found)
                written += 1

    def _extents(self, kafka: KafkaSettings, reports: Reports) -> dict[int, Extent]:
        """What the partitions hold; none if told to stop before the broker and the topic are there."""
        wait, wanted = Waiting(say, _RETRY_S), self._choice.partition
        while not self._stop_requested():
            try:
                numbers = connection.partitions(self._reader.client, kafka, reports, self._reader.topic, _TIMEOUT_S)
                if wanted is not None and wanted not in numbers:
                    raise SettingsError(f"--partition {wanted}: {self._reader.topic} has {numbers[0]} to {numbers[-1]}")
                # Asked for now: OFFSET_END is looked up some time later, and what arrived in between would be skipped.
                return self._reader.extents(numbers if wanted is None else [wanted], _TIMEOUT_S)
            except (BrokerAway, TopicMissing) as away:  # or a partition's leader alone
                wait(str(away))
        return {}

    def _last(self, most: int, extents: dict[int, Extent]) -> list[dict[str, Any]]:
        """The last records that are chosen, the oldest first.

        How many records lie behind an offset nobody tells: the markers of transactions and records of others take
        offsets too. So reading begins further and further ahead, until there are enough.
        """
        reach = most
        while True:
            starts = {number: max(extent.begin, extent.end - reach) for number, extent in extents.items()}
            newest: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
            for record in self._reader.read(starts, extents, self._stop_requested):
                if (shown := self._chosen(record)) is not None:
                    order = (record.timestamp_ms, record.position.offset, record.position.partition.number)
                    (heapq.heappush if len(newest) < most else heapq.heappushpop)(newest, (order, shown))
            is_all = all(starts[number] == extent.begin for number, extent in extents.items())
            if len(newest) == most or is_all or self._stop_requested():
                return [shown for _, shown in sorted(newest, key=lambda entry: entry[0])]
            reach *= 4

    def _chosen(self, record: Record) -> dict[str, Any] | None:
        """The record as it is shown; None for one that is not asked for."""
        choice = self._choice
        if choice.key is not None and text_of(record.key) != choice.key:
            return None
        shown = self._described(record)
        if shown is None or choice.id is None:
            return shown
        datum = shown.get("request" if self._dead_letters else "result")
        return shown if isinstance(datum, dict) and datum.get("id") == choice.id else None

    def _described(self, record: Record) -> dict[str, Any] | None:
        """None if told to stop before the registry could name its schema."""
        wait = Waiting(say, _RETRY_S)
        while not self._stop_requested():
            try:
                return describe(record, self._codecs, dead_letters=self._dead_letters)
            except RegistryAway as away:
                wait(str(away))
        return None


def _start(begin: Begin, extent: Extent) -> int:
    if begin.from_beginning:
        return OFFSET_BEGINNING
    return extent.end if begin.offset is None else max(extent.begin, begin.offset)
