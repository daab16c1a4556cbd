"""Messages that fail: read, computed, written or published."""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest.mock import Mock

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import (
    HUGE_BYTES,
    answered,
    reason,
)
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, reasons, started, starts
from tests.delivery.worker import RETRY, Guarantee, Worker
from worker.errors import DeadLetterLimit, FatalError, Reason, Rejection
from worker.pipeline.batch import BatchPolicy
from worker.rules.crash_count import STARTS
from worker.rules.dead_letter import is_truncated
from worker.rules.dead_letter_limit import DeadLetterLimits


@BOTH
def test_one_message_never_fails_another(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.client_limit_bytes = HUGE_BYTES // 2
    broker.send(P0, b"ok", b"poison", b"ok", b"garbage", b"ok", b"huge", b"ok", b"mute", b"ok")
    worker.settle()
    assert offsets(broker, dead=False) == [0, 2, 4, 6, 8]
    assert reasons(broker) == {1: "inference", 3: "malformed", 5: "too_large", 7: "inference"}
    assert committed(broker) == {P0: 9}
    assert worker.counted("records_dead_lettered_total", reason="too_large") == 1
    assert worker.counted("records_published_total") == 5


@BOTH
def test_a_result_the_broker_refuses_becomes_a_dead_letter(broker: MemoryBroker, guarantee: Guarantee) -> None:
    """The client sends it in the background: the refusal may be met by any later call."""
    worker = started(broker, guarantee)
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    broker.send(P0, b"ok", b"huge", b"ok")
    worker.settle()
    assert offsets(broker, dead=False) == [0, 2]
    assert reasons(broker) == {1: "too_large"}
    # What is larger than a batch is alone in its own, so the first try tells.
    assert worker.counted("transactions_total", result="aborted") == (guarantee == "exactly_once")


def test_a_publish_broken_off_behind_its_receipts_vouches_for_no_other_release(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was resolved since is in the release that closing publishes, and was never sent."""
    worker = started(broker, "at_least_once")
    with monkeypatch.context() as failing:

        def fail(*_: object, wait: bool, **__: object) -> None:
            if not wait:  # the count of starts is waited for
                raise RuntimeError("none of Kafka's")

        failing.setattr(worker.consumer.commits, "commit", fail)
        broker.send(P0, *[b"ok"] * 8)
        with pytest.raises(RuntimeError, match="none of Kafka's"):
            worker.turn(60)
    assert 0 < len(broker.visible) < 8
    worker.loop.close()
    assert broker.committed[P0] <= len(set(offsets(broker)))


def test_a_revoke_that_waits_for_the_device_commits_what_is_there_at_once(broker: MemoryBroker) -> None:
    worker = started(broker)
    worker.slow_offsets = True
    broker.send(P0, *[b"ok"] * 4)
    while not worker.offsets_wait:
        worker.turn()
    broker.send(P0, *[b"ok"] * 4)
    worker.stuck = True
    while not worker.inference.depths[0]:
        worker.loop.step()
    worker.slow_offsets = False
    began_s = broker.clock()
    committed: list[tuple[float, int]] = []

    def watch(seconds: float) -> None:
        worker.wait(seconds)
        committed.append((broker.clock() - began_s, broker.committed.get(P0, 0)))

    worker.loop.clocks = worker.loop.publication._clocks = replace(worker.loop.clocks, wait=watch)
    broker.revoke(P0)
    worker.loop.step()
    assert committed[-1][0] > 5.0  # it waited for the device
    assert min(at_s for at_s, behind in committed if behind == 4) < 0.1


def test_a_partition_lost_and_given_back_does_not_wait_for_our_own_transaction(broker: MemoryBroker) -> None:
    worker = started(broker)
    worker.slow_offsets = True
    broker.send(P0, *[b"ok"] * 4)
    while not worker.offsets_wait:
        worker.turn()
    worker.answer_offsets()
    broker.lose(P0)
    broker.assign(P0)
    began_s = broker.clock()
    worker.loop.step()
    assert broker.clock() - began_s < 1.0
    worker.slow_offsets = False
    worker.settle()
    assert offsets(broker) == list(range(4))


@BOTH
def test_on_a_slow_network_a_refusal_costs_its_record_alone_and_the_rest_gets_on(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    """One by one a full hand takes longer than a publish may. Nothing may go with the next one, and share its blame."""
    worker = started(broker, guarantee)
    broker.send(P0, b"ok")
    worker.settle()
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    broker.round_trip_s = 0.5
    # The hand fills behind the first, which waits for its second attempt.
    broker.send(P0, b"flaky 1", *[b"ok"] * 25, b"huge", *[b"ok"] * 20)
    worker.settle(120)
    assert offsets(broker, dead=False) == [*range(27), *range(28, 48)]
    assert reasons(broker) == {27: "too_large"}


@BOTH
def test_a_dead_letter_from_the_future_goes_whole_and_under_the_brokers_time(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    worker = started(broker, guarantee)
    broker.latest_timestamp_ms = 2  # a record's timestamp is its offset
    broker.send(P0, b"ok", b"garbage", b"ok", b"garbage", b"ok", b"garbage")
    worker.settle()
    assert committed(broker) == {P0: 6}
    letters = {answered(output)[1]: output for output in broker.visible if reason(output)}
    assert {offset: letter.timestamp_ms for offset, letter in letters.items()} == {1: 1, 3: 0, 5: 0}, "0: none"
    for offset, letter in letters.items():
        assert letter.value == b"garbage"
        assert not is_truncated(letter)
        assert dict(letter.headers)["xnli.dlq.timestamp"] == b"%d" % offset


@BOTH
def test_a_message_that_fails_twice_is_answered_once_and_keeps_its_place(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, b"ok", b"flaky 2", b"ok", b"ok", b"ok")
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4]
    assert reasons(broker) == {}
    assert worker.counted("records_retried_total") == 2


def test_a_culprit_is_tried_again_alone(broker: MemoryBroker) -> None:
    worker = started(broker, batch=BatchPolicy(max_messages=8, max_tokens=1_000, max_wait_s=0.05))
    broker.send(P0, b"poison", *[b"ok"] * 7)
    while not offsets(broker):
        worker.turn(20)
        broker.send(P1, *[b"ok"] * 6)  # company that a retry must not drag along
    worker.settle()
    # 8 fail, and so do the first 2, and the culprit alone; then once alone for each attempt that is left.
    wanted = 8 + len(offsets(broker, P1)) + 8 + 2 + RETRY.max_attempts - 1
    assert sum(worker.engine.runs) == wanted


def test_retries_wait_as_long_as_the_policy_says(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"poison")
    moments: list[float] = []
    while not broker.visible:
        before = len(worker.engine.runs)
        worker.turn()
        if len(worker.engine.runs) > before:
            moments.append(broker.clock())
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert gaps == [pytest.approx(0.2, abs=0.02), pytest.approx(0.4, abs=0.02)]


def test_an_expired_request_is_not_scored(broker: MemoryBroker) -> None:
    worker = started(broker, max_age_s=60.0)
    broker.send(P0, b"ok")  # its timestamp is the beginning of time
    worker.settle()
    assert reasons(broker) == {0: "expired"}
    assert worker.engine.runs == []


def test_a_dead_letter_too_large_is_truncated(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.broker_limit_bytes = 12_000
    broker.send(P0, b"small", b"x" * 20_000)
    worker.codec.read = _reject  # type: ignore[method-assign,assignment]  # whatever it reads
    worker.settle()
    first, second = broker.visible
    assert not is_truncated(first)
    assert dict(second.headers)["xnli.dlq.truncated"] == b"20000"
    assert committed(broker) == {P0: 2}


def _reject(_: object) -> object:
    raise FileNotFoundError("neither a rejection nor known")


def test_a_dead_letter_that_cannot_be_written_at_all_halts_with_nothing_committed(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.broker_limit_bytes = 10
    broker.send(P0, b"garbage")
    with pytest.raises(FatalError, match=r"max\.message\.bytes"):
        worker.settle()
    assert committed(broker) == {}


def test_a_limit_on_dead_letters_halts_again_and_again_and_condemns_nobody(broker: MemoryBroker) -> None:
    """A deployment that cannot read a thing, and a supervisor that starts it again."""
    broker.send(P0, *[b"ok"] * 20)
    for _ in range(2 * (STARTS + 1)):
        worker = Worker(broker, dead_letter_limits=DeadLetterLimits(max_consecutive=1))
        rejects = Mock(side_effect=Rejection(Reason.SCHEMA, "decode", "another registry's id"))
        worker.codec.read = rejects  # type: ignore[method-assign]  # whatever it reads
        broker.assign(P0)
        with pytest.raises(DeadLetterLimit):
            worker.settle()
        worker.loop.close()
        assert starts(broker) == 0
    started(broker).settle()
    assert offsets(broker) == list(range(20))
    assert "crash" not in reasons(broker).values()
    assert offsets(broker, dead=True) == list(range(len(reasons(broker)))), "one at a start at most, the rest answered"
    assert len(reasons(broker)) <= 2 * (STARTS + 1)


@BOTH
@pytest.mark.parametrize("word", [b"garbage", b"poison", b"huge"])
def test_what_a_limit_halted_decides_nothing_more_when_it_closes(
    broker: MemoryBroker, guarantee: Guarantee, word: bytes
) -> None:
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    broker.send(P0, *[word] * 12)
    for _ in range(STARTS + 2):
        worker = Worker(broker, guarantee, dead_letter_limits=DeadLetterLimits(max_consecutive=1))
        broker.assign(P0)
        with pytest.raises(DeadLetterLimit):
            worker.settle()
        worker.loop.close()
        assert starts(broker) == 0
