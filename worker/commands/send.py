"""`xnli-worker send`: requests as people have them become Avro on the first input topic, keyed by their id.

What is no request is reported and left out, the others are sent: a typing error in line 90,000 should not cost
the person who corrects it a second copy of the 89,999 before.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker import terminal
from worker.avro import json_request
from worker.avro.codec import Codecs, open_codecs
from worker.commands import connection
from worker.commands.answers import Answers
from worker.commands.connection import Reports, say
from worker.commands.json_lines import write_tally
from worker.commands.progress import progress_bar
from worker.commands.request_source import Given, labels_of, read
from worker.errors import FatalError, Reason, Rejection, SettingsError, TopicMissing
from worker.kafka import client_config, client_errors
from worker.settings import Settings

_CONNECT_TIMEOUT_S: Final = 10.0
# A broker that creates topics by itself says "unknown" while it does so.
_CREATION_TIMEOUT_S: Final = 3.0
# No broker takes a request as large as this; /dev/zero is one endless line.
_LINE_BYTES: Final = 64 * 1024 * 1024
_SHORTEN: Final = (
    "shorten its text, or raise message.max.bytes in kafka.producer_properties and max.message.bytes of the topic"
)


@dataclass(slots=True)
class Tally:
    """What became of the requests. ``unconfirmed`` have neither been delivered nor failed; 0 unless cut short."""

    delivered: int = 0
    refused: int = 0  # no requests, or too large: never sent
    failed: int = 0  # sent, but not acknowledged in time (message.timeout.ms)
    unconfirmed: int = 0


def send(
    file: str,
    config: Path | None,
    *,
    labels: str = "",
    wait_s: float | None = None,
    as_json: bool = False,
) -> bool:
    """Send every request of ``file`` ("-" is stdin) and wait for the broker's answers. True if all were delivered.

    Bad requests and failures go to stderr as ``FILE:LINE: what``, the tally to stdout: JSON in a pipe, a sentence on a
    terminal.

    Args:
        file: JSON lines, arrays or objects, or CSV; see `worker.commands.request_source`.
        config: The settings' file.
        labels: For requests that name none, as `worker.commands.request_source.labels_of` takes them.
        wait_s: Write the result or dead letter of each request too, as `tail` does, and wait for them so long; then
            True means that each has a result.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: the settings or the file's name are wrong, or the registry does not know the request's schema.
        BrokerAway, TopicMissing, RegistryAway: nothing was sent.
        FatalError: the client cannot go on; what was delivered is on stdout all the same.
    """
    settings = connection.load_settings(config)
    default_labels = labels_of(labels)
    with _opened(file) as source:
        codecs = open_codecs(settings.schema_registry, sleep=_wait_aloud)
        topic = settings.topics.input[0]
        codecs.open(request_topic=topic)
        reports = Reports(say)
        producer = connection.connect(Producer, client_config.producer(settings.kafka, transactional_id=None), reports)
        _await_topic(producer, settings, reports, topic)
        answers = None if wait_s is None else Answers(settings, codecs, as_json=as_json)
        if source.isatty():
            say("reading requests from the terminal, one JSON object a line; end with Ctrl-D")
        tally = Tally()
        try:
            # The bar shows the bytes whose fate is known, of a pipe the number of requests.
            with progress_bar("sending", "sent", _size_bytes(source)) as move_bar:
                name = "stdin" if file == "-" else file
                _Sending(producer, codecs, reports, topic, name, tally, move_bar, answers).run(source, default_labels)
            is_answered = answers is None or wait_s is None or answers.collect(wait_s)
        finally:
            if answers is not None:
                answers.close()
            _show(tally, topic, as_json=as_json)
    return is_answered and not tally.refused and not tally.failed


class _Sending:
    """One file on its way."""

    def __init__(
        self,
        producer: Producer,
        codecs: Codecs,
        reports: Reports,
        topic: str,
        name: str,
        tally: Tally,
        move_bar: Callable[[int, int], None],
        answers: Answers | None,
    ) -> None:
        self._producer = producer
        self._codecs = codecs
        self._reports = reports
        self._topic = topic
        self._name = name
        self._tally = tally
        self._move_bar = move_bar
        self._answers = answers
        self._requests = 0  # whose fate is known
        self._broken = ""  # why nothing further could be read

    def run(self, source: BinaryIO, labels: Sequence[str]) -> None:
        """Send all requests and return when each is delivered, or has failed."""
        for given in read(self._lines_of(source), labels):
            try:
                if given.refused is not None:
                    raise given.refused
                if given.fields is None:
                    self._move_bar(given.size_bytes, self._requests)
                else:
                    self._produce(given, given.fields)
            except Rejection as refused:
                self._complain(given.line, str(refused))
                self._tally.refused += 1
                self._advance(given.size_bytes)
            self._producer.poll(0)
            self._reports.check()
        # In short waits, for Ctrl-C is heard between them. It ends: after message.timeout.ms a record has failed.
        while self._producer.flush(0.5):
            self._reports.check()
        if self._broken:
            raise FatalError(self._broken)

    def _lines_of(self, source: BinaryIO) -> Iterator[bytes]:
        sent = "what stood there until then was sent"
        try:
            while line := source.readline(_LINE_BYTES + 1):
                if len(line) > _LINE_BYTES:
                    self._broken = f"{self._name}: a line of more than {_LINE_BYTES:,} bytes is no request; {sent}"
                    return
                yield line
        except OSError as error:
            self._broken = f"{self._name}: {error.strerror}; {sent}"

    def _produce(self, given: Given, fields: Mapping[str, Any]) -> None:
        datum = json_request.request(fields)
        value, headers = self._codecs.encode_request(datum)
        key = str(datum["id"]).encode()

        def delivered(error: KafkaError | None, message: Message) -> None:
            self._tally.unconfirmed -= 1
            self._advance(given.size_bytes)
            if error is None:
                self._tally.delivered += 1
                if self._answers is not None:
                    self._answers.expect(message)
            else:
                self._tally.failed += 1
                mend = _SHORTEN if error.code() == KafkaError.MSG_SIZE_TOO_LARGE else "send it again"
                self._complain(given.line, f"not delivered: {error.str()}; {mend}")

        while True:
            try:
                self._producer.produce(self._topic, value, key, headers=list(headers), on_delivery=delivered)
            except BufferError:  # back-pressure: the queue is full until the broker has taken some of it
                self._producer.poll(0.1)
            except KafkaException as error:
                found: KafkaError = error.args[0]
                if found.code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise client_errors.cannot_go_on("producer", found) from error
                raise Rejection(
                    Reason.TOO_LARGE,
                    "encode",
                    f"the request has {len(value)} bytes, more than the producer may send; {_SHORTEN}",
                ) from None
            else:
                self._tally.unconfirmed += 1
                return

    def _advance(self, size_bytes: int) -> None:
        self._requests += 1
        self._move_bar(size_bytes, self._requests)

    def _complain(self, number: int, what: str) -> None:
        sys.stderr.write(terminal.harmless(f"{self._name}:{number}: {what}") + "\n")


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        if sys.stdin is None:
            raise SettingsError("stdin is closed; name a file of JSON lines, or give some on stdin")
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115 (closed below; the two failures must not be told apart there)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a file of requests, or - for stdin") from None
    with source:
        yield source


def _await_topic(producer: Producer, settings: Settings, reports: Reports, topic: str) -> None:
    deadline_s = time.monotonic() + _CREATION_TIMEOUT_S
    while True:
        try:
            connection.partitions(producer, settings.kafka, reports, topic, _CONNECT_TIMEOUT_S)
        except TopicMissing as missing:
            if time.monotonic() > deadline_s:
                raise TopicMissing(f"topics.input: {missing}") from None
            time.sleep(0.1)
        else:
            return


def _wait_aloud(seconds: float) -> None:
    say(f"the schema registry does not answer; trying again in {seconds:.1f} s")
    time.sleep(seconds)


def _size_bytes(source: BinaryIO) -> int | None:
    """A file's size; None for a pipe, a terminal, or a stream that is no file at all."""
    try:
        status = os.fstat(source.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _show(tally: Tally, topic: str, *, as_json: bool) -> None:
    parts = [f"{tally.delivered:,} delivered to {topic}"]
    parts += [f"{count:,} {name}" for name, count in asdict(tally).items() if count and name != "delivered"]
    write_tally({"topic": topic, **asdict(tally)}, ", ".join(parts), as_json=as_json)
