from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.messages import Headers, Origin, Output, Partition, Position, Record
from worker.rules.retry_headers import PREFIX, origin_of, parse, restored, retry_copy, without

foreign: st.SearchStrategy[Headers] = st.lists(
    st.tuples(
        st.text(max_size=10).filter(lambda name: not name.startswith(PREFIX)), st.none() | st.binary(max_size=20)
    ),
    max_size=5,
).map(tuple)


def _read_again(sent: Output, offset: int) -> Record:
    assert sent.timestamp_ms is None, "retention would count from the request's own time"
    return Record(Position(Partition(sent.topic, 0), offset, 7), sent.key, sent.value, sent.headers, 77)


@given(
    headers=foreign, rounds=st.integers(1, 6), value=st.none() | st.binary(max_size=50), at_ms=st.integers(-1, 2**41)
)
def test_a_record_is_restored_from_any_number_of_retry_topics_as_it_was(
    headers: Headers, rounds: int, value: bytes | None, at_ms: int
) -> None:
    record = first = Record(Position(Partition("requests", 3), 41, 1), b"key", value, headers, at_ms)
    sizes = []
    for attempt in range(2, 2 + rounds):
        sent = retry_copy(record, "g.retry.5s", attempt, not_before_ms=10_000 * attempt)
        read = _read_again(sent, offset=attempt)
        sizes.append(len(sent.headers))
        headers_read = parse(read)
        assert headers_read is not None
        assert (headers_read.attempt, headers_read.not_before_ms) == (attempt, 10_000 * attempt)
        record = restored(read, headers_read)
        assert record.attempt == attempt
    assert origin_of(record) == Origin(first.position.partition, first.position.offset)
    assert (record.key, record.value, record.timestamp_ms) == (first.key, first.value, first.timestamp_ms)
    assert without(record.headers) == first.headers
    assert len(set(sizes)) == 1  # it does not grow


@given(
    st.dictionaries(
        st.sampled_from(["attempt", "not-before", "topic", "partition", "offset", "timestamp"]), st.binary(max_size=8)
    )
)
def test_headers_somebody_else_wrote_are_no_failure(fields: dict[str, bytes]) -> None:
    headers = tuple((PREFIX + name, value) for name, value in fields.items())
    record = Record(Position(Partition("g.retry.5s", 0), 1, 1), None, b"", headers, 0)
    parse(record)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        # What comes back has its second attempt at least.
        *(("attempt", value) for value in (-(10**400), -5, 0, 1, 1 << 31)),
        *(("partition", value) for value in (-1, 1 << 31)),
        *(("offset", value) for value in (-1, 1 << 63)),
        *(("not-before", value) for value in (1 << 63, 10**400)),
        *(("timestamp", value) for value in (-(10**400), -2, 1 << 63, 10**400)),  # Kafka's are 64 bits, -1 is none
    ],
    ids=lambda value: str(value)[:20],
)
def test_headers_that_nobody_can_have_written_count_as_none(field: str, value: int) -> None:
    first = Record(Position(Partition("requests", 3), 41, 1), b"key", b"value", (), 5)
    sent = retry_copy(first, "g.retry.5s", 2, not_before_ms=10)
    headers = dict(sent.headers) | {PREFIX + field: b"%d" % value}
    record = Record(Position(Partition(sent.topic, 0), 7, 1), sent.key, sent.value, tuple(headers.items()), 77)
    assert parse(record) is None


def test_retry_headers_of_a_record_that_was_not_restored_are_not_believed() -> None:
    """On an input topic anybody may have written them."""
    forged = retry_copy(Record(Position(Partition("bank", 9), 8, 1), None, b"", (), 0), "g.retry.5s", 2, 0)
    record = Record(Position(Partition("requests", 3), 41, 1), None, b"", forged.headers, 0)
    assert origin_of(record) == Origin(Partition("requests", 3), 41)
    assert origin_of(record) == origin_of(Record(record.position, None, b"", (), 0))
