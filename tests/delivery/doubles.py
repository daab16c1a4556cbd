"""Requests that say what shall become of them, and an engine and a codec that obey.

The value of a record is a word of command, and its position is its name: results carry ``topic/partition/offset``.

- ``ok``: answered.
- ``garbage``: no request can be read from it.
- ``poison``: the model fails on it, whenever.
- ``flaky N``: the model fails on it N times when it is alone, then answers.
- ``huge``: its result is larger than a client of usual settings sends.
- ``large``: its result has `LARGE_BYTES` that no codec compresses.
- ``long``: it has `LONG_TOKENS`.
- ``mute``: its result cannot be written.
- ``set NAME``: it names a label set.
- ``kill``: the process dies while the model has it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tests import builders
from worker.errors import DeviceAway, Reason, RegistryAway, Rejection, UnknownLabelSet
from worker.messages import (
    Classification,
    Encoded,
    Job,
    LabelSetVersion,
    Outcome,
    Output,
    OutputKind,
    Partition,
    Position,
    Record,
    Request,
    Work,
)
from worker.rules.dead_letter import PREFIX
from worker.rules.retry_headers import without

INPUT: Final = "requests"
OUTPUT: Final = "results"
DEAD_LETTERS: Final = "dead-letters"
HUGE_BYTES: Final = 1 << 20
LARGE_BYTES: Final = 300_000
LONG_TOKENS: Final = 10_000
ANSWER: Final = Classification((), multi_label=False, abstained=False)

Name = tuple[Partition, int]


class Killed(BaseException):
    """The end of the process, as far as one process can tell."""


def partition(number: int = 0) -> Partition:
    return Partition(INPUT, number)


def record(offset: int = 0, value: bytes | None = b"ok", *, number: int = 0, generation: int = 1) -> Record:
    return Record(Position(partition(number), offset, generation), b"key", value, (), 1_000)


def request(text: str = "ok") -> Request:
    return builders.request(text, id="", labels=("a",), hypotheses=("a",))


def job(offset: int = 0, text: str = "ok", *, tokens: int = 1, number: int = 0, attempt: int = 1) -> Job:
    read = replace(record(offset, text.encode(), number=number), attempt=attempt)
    return Job(read, request(text), Encoded((), 1, False, tokens))


class Sets:
    """Label sets: names and versions. What is put arrives with the next `refresh`."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.arriving: list[tuple[str, int | None]] = []
        self.changes = 0

    def put(self, name: str, version: int | None) -> None:
        """``version`` None takes the set away."""
        self.arriving.append((name, version))

    def refresh(self) -> None:
        for name, version in self.arriving:
            self.changes += 1
            self.versions.pop(name, None)
            if version is not None:
                self.versions[name] = version
        self.arriving.clear()

    def __contains__(self, name: str) -> bool:
        return name in self.versions


class Codec:
    """Reads the words of command; ``away`` makes the registry unreachable."""

    def __init__(self, output: str = OUTPUT) -> None:
        self._output = output
        self.away = False
        self.sets = Sets()

    def read(self, record: Record) -> Request:
        if self.away:
            raise RegistryAway("no registry")
        if record.value == b"garbage":
            raise Rejection(Reason.MALFORMED, "decode", "garbage")
        # The name goes along in the text: what the engine sees of a job is its request.
        text = (record.value or b"").decode()
        found = request(f"{text}\n{name(record.position)}")
        return replace(found, label_set=self._version(text[4:])) if text.startswith("set ") else found

    def _version(self, name: str) -> LabelSetVersion:
        if name not in self.sets:
            raise UnknownLabelSet(name, f"label_set = {name!r}: there is no set of this name")
        return LabelSetVersion(name, str(self.sets.versions[name]))

    def write(self, job: Job, outcome: Outcome) -> Output:
        if word(job.request) == "mute":
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        value = name(job.record.position).encode()
        if word(job.request) == "huge":
            value += b" " * HUGE_BYTES
        if word(job.request) == "large":
            value += random.Random(0).randbytes(LARGE_BYTES)
        headers = without(job.record.headers)
        return Output(OutputKind.RESULT, self._output, job.record.key, value, headers, attempts=job.record.attempt)


def word(request: Request) -> str:
    return request.text.split("\n")[0]


def encode(request: Request) -> Encoded:
    return Encoded((), 1, False, LONG_TOKENS if word(request) == "long" else 10)


class Engine:
    """Answers as the words say. ``runs`` keeps the size of every pass, ``away`` fails so many passes to come.

    ``label_sets`` keeps the versions that each pass saw.
    """

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.label_sets: list[tuple[LabelSetVersion, ...]] = []
        self.away = 0
        self.failures_before: Counter[str] = Counter()  # of each word: so often it fails when it is alone
        self._failures: Counter[str] = Counter()

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        beat()
        self.runs.append(len(requests))
        self.label_sets.append(tuple(asked.label_set for asked, _ in requests if asked.label_set is not None))
        if self.away:
            self.away -= 1
            raise DeviceAway("the device is away")
        for request, _ in requests:
            if self.failures_before[word(request)]:
                self.failures_before[word(request)] -= len(requests) == 1
                raise RuntimeError("flaky")
            match word(request).split():
                case ["poison"]:
                    raise RuntimeError("poison")
                case ["kill"]:
                    raise Killed
                case ["flaky", times] if self._failures[request.text] < int(times):
                    self._failures[request.text] += len(requests) == 1
                    raise RuntimeError("flaky")
        n = len(requests)
        work = Work(rows=n, computed=n, tokens=n, slots=n, cache_hits=0, shrinks=0, forwards=1, seconds=0.0)
        return [ANSWER] * n, work


def name(position: Position) -> str:
    return f"{position.partition.topic}/{position.partition.number}/{position.offset}"


def answered(output: Output) -> Name:
    """Whose answer an output is."""
    if not reason(output):
        topic, number, offset = (output.value or b"").decode().split("/")
        return Partition(topic, int(number)), int(offset)
    headers = dict(output.headers)
    where, number_, offset_ = (headers[f"{PREFIX}{part}"] or b"" for part in ("topic", "partition", "offset"))
    return Partition(where.decode(), int(number_)), int(offset_)


def reason(output: Output) -> str:
    """Why an output is a dead letter; empty for a result."""
    return (dict(output.headers).get(f"{PREFIX}reason") or b"").decode()
