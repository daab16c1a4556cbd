from __future__ import annotations

import hashlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests import builders
from worker.errors import Reason
from worker.messages import Fault, FaultKind, Headers, Outgoing, Partition, Position, Record
from worker.rules.dead_letter import PREFIX, Obituary, dead_letter, is_truncated, truncated
from worker.rules.retry_headers import send_round

OBITUARY = Obituary("dead", "group", "worker-0")
HEADERS = [
    "reason",
    "stage",
    "error",
    "message",
    "stacktrace",
    "topic",
    "partition",
    "offset",
    "timestamp",
    "group",
    "attempts",
    "replays",
    "worker",
]

foreign: st.SearchStrategy[Headers] = st.lists(
    st.tuples(
        st.text(max_size=10).filter(lambda name: not name.startswith("xnli.")), st.none() | st.binary(max_size=20)
    ),
    max_size=5,
).map(tuple)
faults = st.builds(
    Fault,
    kind=st.just(FaultKind.MESSAGE),
    reason=st.sampled_from(Reason),
    stage=st.sampled_from(["frame", "decode", "inference"]),
    error=st.just("SomeError"),
    message=st.text(max_size=3000),
    stacktrace=st.text(max_size=6000),
)
records = st.builds(
    Record,
    position=st.builds(
        Position, partition=st.just(Partition("requests", 2)), offset=st.integers(0, 2**40), epoch=st.just(1)
    ),
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=200),
    headers=foreign,
    timestamp_ms=st.integers(-1, 2**41),
)


def _ours(letter: Outgoing) -> dict[str, bytes | None]:
    return {name.removeprefix(PREFIX): value for name, value in letter.headers if name.startswith(PREFIX)}


@given(records, faults, st.integers(1, 100))
def test_a_letter_is_the_record_as_it_came_and_thirteen_headers(record: Record, fault: Fault, attempts: int) -> None:
    letter = dead_letter(record, fault, attempts, OBITUARY)
    assert (letter.topic, letter.key, letter.value, letter.reason) == ("dead", record.key, record.value, fault.reason)
    assert letter.timestamp_ms == (record.timestamp_ms if record.timestamp_ms >= 0 else None)
    assert tuple(h for h in letter.headers if not h[0].startswith(PREFIX)) == record.headers
    ours = _ours(letter)
    assert sorted(ours) == sorted(HEADERS)
    assert ours["offset"] == b"%d" % record.position.offset
    assert ours["attempts"] == b"%d" % attempts
    for value in ours.values():
        assert value is not None
        assert len(value) <= 4096
        value.decode()  # UTF-8, cut between characters


@given(records, faults, faults)
def test_a_second_death_replaces_the_headers_and_keeps_the_first_origin(
    record: Record, first: Fault, second: Fault
) -> None:
    letter = dead_letter(record, first, 1, OBITUARY)
    other = dead_letter(builders.read_back(letter), second, 3, Obituary("dead", "other-group", "worker-1"))
    before, after = _ours(letter), _ours(other)
    assert len(other.headers) == len(letter.headers)
    for name in ("topic", "partition", "offset", "timestamp"):
        assert after[name] == before[name]
    assert after["reason"] == second.reason.encode()
    assert after["group"] == b"other-group"


@given(records, faults)
def test_a_record_that_dies_on_a_detour_names_where_it_was_first_read(record: Record, fault: Fault) -> None:
    sent = send_round(record, "group.retry.5s", 2, 10)
    letter = dead_letter(builders.read_back(sent, now_ms=record.timestamp_ms), fault, 2, OBITUARY)
    assert letter.headers == dead_letter(record, fault, 2, OBITUARY).headers


@given(records, faults, st.binary(max_size=9000), st.binary(max_size=9000))
def test_a_truncated_letter_is_small_and_identifies_the_whole(
    record: Record, fault: Fault, value: bytes, header: bytes
) -> None:
    whole = replace(record, value=value, headers=(*record.headers, ("big", header)))
    letter = dead_letter(whole, fault, 1, OBITUARY)
    small = truncated(letter, keep_bytes=100)
    assert is_truncated(small)
    assert not is_truncated(letter)
    ours = _ours(small)
    assert ours["truncated"] == b"%d" % len(value)
    assert ours["sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert ours["reason"] == fault.reason.encode()
    assert small.value == value[:100]
    assert all(len(text or b"") <= 100 for _, text in small.headers)


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 9_000)), max_size=100))
def test_a_truncated_letter_is_small_whatever_its_headers(sizes: list[tuple[int, int]]) -> None:
    """Names, too, may be what is too large: Kafka bounds them by the record alone."""
    headers = tuple(("n" * name, b"v" * value) for name, value in sizes)
    fault = Fault(FaultKind.MESSAGE, Reason.INVALID, "decode", "Error", "")
    letter = dead_letter(builders.record(headers=headers), fault, 1, OBITUARY)
    small = truncated(letter)
    kept = [header for header in small.headers if not header[0].startswith(PREFIX)]
    assert kept == [(name, (value or b"")[:4096]) for name, value in headers if len(name) <= 256][:64]
    assert sum(len(name) + len(value or b"") for name, value in small.headers) < 300_000
    assert len(_ours(small)) == len(HEADERS) + 2
