from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import position, read_back, record
from worker.messages import Fault, FaultKind, Headers, Output
from worker.rules.dead_letter import PREFIX, DeadLetterSource, dead_letter, truncated
from worker.rules.replay import Cause, DeadLetterRecord, Refusal, Selection, replayed

INPUTS = ("requests",)
SOURCE = DeadLetterSource("dead", "group", "worker-1")
FAULT = Fault(FaultKind.MESSAGE, "inference", "inference", "ValueError", "no", "at line 1")


def dead(
    headers: dict[str, str] | None = None, key: bytes | None = b"k", timestamp_ms: int = 1_000
) -> DeadLetterRecord:
    said = {"reason": "inference", "topic": "requests", "partition": "3", "offset": "7", "replays": "0"}
    ours: Headers = tuple((f"{PREFIX}{name}", text.encode()) for name, text in (said | (headers or {})).items())
    return DeadLetterRecord(
        record(b"v", at=position(5, topic="dead"), key=key, headers=ours, timestamp_ms=timestamp_ms)
    )


def send_again(of: DeadLetterRecord, *, to: str | None = None, max_replays: int = 3) -> Output:
    found = replayed(of, to=to, inputs=INPUTS, max_replays=max_replays)
    assert isinstance(found, Output), found
    return found


def refused(of: DeadLetterRecord, *, to: str | None = None, max_replays: int = 3) -> Cause:
    found = replayed(of, to=to, inputs=INPUTS, max_replays=max_replays)
    assert isinstance(found, Refusal), found
    return found.cause


def test_what_came_straight_back_is_not_sent_again_by_the_same_campaign() -> None:
    sent = replayed(dead(), to=None, inputs=INPUTS, max_replays=3, campaign="spring")
    assert isinstance(sent, Output)
    again = DeadLetterRecord(
        read_back(dead_letter(read_back(sent, offset=9, now_ms=9_000), FAULT, 5, SOURCE), offset=6, now_ms=9_001)
    )
    refusal = replayed(again, to=None, inputs=INPUTS, max_replays=3, campaign="spring")
    assert isinstance(refusal, Refusal)
    assert refusal.cause is Cause.RETURNED
    assert "spring" in refusal.message
    assert "another --campaign" in refusal.message
    other = replayed(again, to=None, inputs=INPUTS, max_replays=3, campaign="summer")
    assert isinstance(other, Output)
    assert dict(other.headers)[f"{PREFIX}campaign"] == b"summer"


foreign = st.lists(
    st.tuples(st.text(max_size=8).filter(lambda n: not n.startswith("xnli.")), st.none() | st.binary(max_size=8)),
    max_size=4,
).map(tuple)


@given(headers=foreign, key=st.none() | st.binary(max_size=8), value=st.binary(max_size=8), lives=st.integers(1, 6))
def test_what_dies_again_keeps_its_first_origin_its_count_and_its_size(
    headers: Headers, key: bytes | None, value: bytes, lives: int
) -> None:
    """Death and replay in turn, until the guard ends it."""
    living = record(value, at=position(77, number=3), key=key, headers=headers, timestamp_ms=1_234)
    sizes = set()
    for replays in range(lives + 1):
        died = DeadLetterRecord(
            read_back(dead_letter(living, FAULT, 5, SOURCE), offset=replays, now_ms=9_000 + replays)
        )
        sizes.add(sum(len(name) + len(text or b"") for name, text in died.record.headers))
        assert (died.record.key, died.record.value, died.record.headers[: len(headers)]) == (key, value, headers)
        assert (died.said["topic"], died.number("partition"), died.number("offset")) == ("requests", 3, 77)
        assert died.number("timestamp") == 1_234
        assert died.replays == replays
        if replays == lives:
            assert refused(died, max_replays=lives) is Cause.LOOP
            break
        again = send_again(died, max_replays=lives)
        assert (again.topic, again.key, again.value) == ("requests", key, value)
        living = read_back(again, offset=1_000 + replays, now_ms=5_000)
        assert living.timestamp_ms == 5_000  # the old time would let it expire on arrival
        assert living.headers[: len(headers)] == headers
    assert len(sizes) == 1


def test_a_replayed_record_tells_its_origin_and_its_count_and_nothing_else_of_its_death() -> None:
    died = record(at=position(77, number=3), headers=(("trace", b"1"),), timestamp_ms=1_234)
    again = send_again(DeadLetterRecord(read_back(dead_letter(died, FAULT, 5, SOURCE))))
    assert again.headers == (
        ("trace", b"1"),
        ("xnli.dlq.topic", b"requests"),
        ("xnli.dlq.partition", b"3"),
        ("xnli.dlq.offset", b"77"),
        ("xnli.dlq.timestamp", b"1234"),
        ("xnli.dlq.replays", b"1"),
    )


def test_a_detour_through_a_retry_topic_is_not_begun_in_the_middle() -> None:
    record = dead().record
    detoured = DeadLetterRecord(replace(record, headers=(*record.headers, ("xnli.retry.attempt", b"4"))))
    assert not any(name.startswith("xnli.retry.") for name, _ in send_again(detoured).headers)


def test_a_truncated_letter_stays() -> None:
    whole = dead_letter(dead().record, FAULT, 1, SOURCE)
    assert refused(DeadLetterRecord(read_back(truncated(whole)))) is Cause.TRUNCATED
    assert refused(DeadLetterRecord(read_back(truncated(whole))), to="elsewhere") is Cause.TRUNCATED


@pytest.mark.parametrize("origin", ["payments", "dead", "", "requests "])
def test_an_origin_that_is_no_input_topic_is_not_believed(origin: str) -> None:
    """The header may be the requester's own."""
    assert refused(dead({"topic": origin})) is Cause.ORIGIN
    assert send_again(dead({"topic": origin}), to="elsewhere").topic == "elsewhere"


def test_a_record_of_somebody_else_has_no_origin() -> None:
    stranger = DeadLetterRecord(replace(dead().record, headers=()))
    assert refused(stranger) is Cause.ORIGIN
    assert send_again(stranger, to="elsewhere").headers == (("xnli.dlq.replays", b"1"),)


@pytest.mark.parametrize("count", ["", "-1", "x", "9" * 5000, "١"])
def test_a_count_that_is_none_of_ours_is_written_anew(count: str) -> None:
    assert dict(send_again(dead({"replays": count})).headers)["xnli.dlq.replays"] == b"1"


@pytest.mark.parametrize(
    ("selection", "takes"),
    [
        (Selection(), True),
        (Selection(reasons=frozenset({"crash", "inference"})), True),
        (Selection(reasons=frozenset({"crash"})), False),
        (Selection(since_ms=1_000), True),
        (Selection(since_ms=1_001), False),
        (Selection(until_ms=1_001), True),
        (Selection(until_ms=1_000), False),
        (Selection(topic="requests", partition=3), True),
        (Selection(topic="others"), False),
        (Selection(partition=0), False),
        (Selection(key="k"), True),
        (Selection(key="K"), False),
        (Selection(replays=0), True),
        (Selection(replays=1), False),
        (Selection(reasons=frozenset({"inference"}), key="other"), False),
    ],
)
def test_a_selection_takes_what_passes_all_its_filters(selection: Selection, *, takes: bool) -> None:
    assert selection.takes(dead()) is takes


def test_what_has_no_time_is_in_no_span_of_time() -> None:
    timeless = dead(timestamp_ms=-1)
    assert Selection().takes(timeless)
    assert not Selection(since_ms=0).takes(timeless)
    assert not Selection(until_ms=1).takes(timeless)


def test_a_key_is_asked_for_as_it_is_shown() -> None:
    assert Selection(key="\\xff!").takes(dead(key=b"\xff!"))
    assert Selection(key="東京").takes(dead(key="東京".encode()))
    assert not Selection(key="").takes(dead(key=None))


def test_what_could_not_be_read_is_not_replayed() -> None:
    assert refused(DeadLetterRecord(replace(dead().record, headers=(), unreadable="no headers"))) is Cause.UNREADABLE
    assert refused(DeadLetterRecord(replace(dead().record, value=None))) is Cause.UNREADABLE
