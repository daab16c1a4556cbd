from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import position, read_back, record
from worker.messages import Headers, Outgoing, Record
from worker.rules.retry_headers import PREFIX, come_back, detour_of, origin_of, send_round, topics, without

foreign: st.SearchStrategy[Headers] = st.lists(
    st.tuples(
        st.text(max_size=10).filter(lambda name: not name.startswith(PREFIX)), st.none() | st.binary(max_size=20)
    ),
    max_size=5,
).map(tuple)


def _read_again(sent: Outgoing, offset: int) -> Record:
    assert sent.timestamp_ms is None, "retention would count from the request's own time"
    return come_back(read_back(sent, offset=offset))


@given(
    headers=foreign, rounds=st.integers(1, 6), value=st.none() | st.binary(max_size=50), at_ms=st.integers(-1, 2**41)
)
def test_a_record_comes_back_from_any_number_of_detours_as_it_was(
    headers: Headers, rounds: int, value: bytes | None, at_ms: int
) -> None:
    read = first = record(value, at=position(41, number=3), headers=headers, timestamp_ms=at_ms)
    sizes = []
    for attempt in range(2, 2 + rounds):
        sent = send_round(read, "g.retry.5s", attempt, not_before_ms=10_000 * attempt)
        read = _read_again(sent, offset=attempt)
        sizes.append(len(sent.headers))
        detour = detour_of(read)
        assert detour is not None
        assert (detour.attempt, detour.not_before_ms) == (attempt, 10_000 * attempt)
    assert origin_of(read) == (first.position.partition, first.position.offset)
    assert (read.key, read.value, read.timestamp_ms) == (first.key, first.value, first.timestamp_ms)
    assert without(read.headers) == first.headers
    assert len(set(sizes)) == 1  # it does not grow


@given(
    st.dictionaries(
        st.sampled_from(["attempt", "not-before", "topic", "partition", "offset", "timestamp"]), st.binary(max_size=8)
    )
)
def test_headers_somebody_else_wrote_are_no_failure(fields: dict[str, bytes]) -> None:
    headers = tuple((PREFIX + name, value) for name, value in fields.items())
    read = record(at=position(topic="g.retry.5s"), headers=headers)
    detour_of(read)
    origin_of(read)
    come_back(read)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("attempt", value) for value in (-(10**400), -5, 0, 1)),  # what comes back has its second at least
        *(("not-before", value) for value in (1 << 63, 10**400)),
        *(("timestamp", value) for value in (-(10**400), -2, 1 << 63, 10**400)),  # Kafka's are 64 bits, -1 is none
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_detour_that_nobody_can_have_taken_counts_as_none(field: str, value: int) -> None:
    sent = send_round(record(at=position(41, number=3)), "g.retry.5s", 2, not_before_ms=10)
    headers = dict(sent.headers) | {PREFIX + field: b"%d" % value}
    read = replace(read_back(sent), headers=tuple(headers.items()))
    assert detour_of(read) is None
    assert come_back(read) is read
    assert origin_of(read) == (read.position.partition, read.position.offset)


def test_topics_are_named_after_group_and_delay_shortest_first() -> None:
    assert topics("g", (60, 0.5, 5)) == ((0.5, "g.retry.0.5s"), (5, "g.retry.5s"), (60, "g.retry.60s"))
