"""The answers to requests that were just sent: `xnli-worker send --wait`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Message

from worker.avro.codec import Codecs
from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.commands.json_lines import describe
from worker.commands.record_lines import RecordLines
from worker.errors import RegistryAway
from worker.kafka.reader import Reader
from worker.messages import Record
from worker.rules.dead_letter import PREFIX
from worker.screen import plural
from worker.settings import Settings

_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05
_RETRY_S: Final = 0.5

_Place = tuple[str, int, int]  # topic, partition and offset of a request


class Answers:
    """Reads results and dead letters from where their topics end now, and writes those of the requests expected.

    An answer is known by where its request lies, which it says itself: others may send requests with the same id.

    Raises:
        BrokerAway, TopicMissing: there is nothing to read from.
    """

    def __init__(self, settings: Settings, codecs: Codecs, *, as_json: bool) -> None:
        self._codecs = codecs
        self._lines = RecordLines(as_json=as_json)
        self._expected: set[_Place] = set()
        self._dead = 0
        reports = Reports(say)
        self._readers: list[tuple[Reader, bool]] = []
        for topic, is_dead in ((settings.topics.output, False), (settings.topics.dead_letter, True)):
            reader = connection.open_reader(settings.kafka, topic, reports, client="send")
            self._readers.append((reader, is_dead))
            numbers = connection.partitions(reader.client, settings.kafka, reports, topic, _TIMEOUT_S)
            ends = {number: extent.end for number, extent in reader.extents(numbers, _TIMEOUT_S).items()}
            reader.assign(ends)

    def expect(self, delivered: Message) -> None:
        """A request was delivered here."""
        self._expected.add((str(delivered.topic()), int(delivered.partition() or 0), int(delivered.offset() or 0)))

    def collect(self, timeout_s: float) -> bool:
        """Write the answers as they come, for so long at most. True if each request has a result."""
        deadline_s = time.monotonic() + timeout_s
        while self._expected and time.monotonic() < deadline_s:
            for reader, is_dead in self._readers:
                record = reader.poll(_POLL_S)
                while record is not None:
                    self._take(record, is_dead, deadline_s)
                    record = reader.poll(0)
        if self._expected:
            say(
                f"no answer to {plural(len(self._expected), 'request')} in {timeout_s:g} s: is a worker running, with "
                "these topics? A longer --timeout waits longer, xnli-worker tail --last shows what came later"
            )
        return not self._expected and not self._dead

    def close(self) -> None:
        """Disconnect."""
        for reader, _ in self._readers:
            reader.close()

    def _take(self, record: Record, is_dead: bool, deadline_s: float) -> None:
        shown = self._described(record, is_dead, deadline_s)
        place = None if shown is None else _place(shown)
        if shown is None or place not in self._expected:
            return
        self._expected.discard(place)
        self._dead += is_dead
        self._lines.write(shown)

    def _described(self, record: Record, is_dead: bool, deadline_s: float) -> dict[str, Any] | None:
        while time.monotonic() < deadline_s:
            with suppress(RegistryAway):
                return describe(record, self._codecs, dead_letters=is_dead)
            time.sleep(_RETRY_S)
        return None


def _place(shown: dict[str, Any]) -> _Place | None:
    """Where the request of an answer lies, as the answer says."""
    result = shown.get("result")
    if isinstance(result, dict):
        source = result.get("source") or {}
        return str(source.get("topic")), int(source.get("partition", -1)), int(source.get("offset", -1))
    headers = shown.get("headers") or {}
    said = [headers.get(f"{PREFIX}{name}") for name in ("topic", "partition", "offset")]
    with suppress(TypeError, ValueError):
        return str(said[0]), int(str(said[1])), int(str(said[2]))
    return None
