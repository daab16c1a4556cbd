"""The Kafka stage, step by step, over Kafka in memory and on a fake clock."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from dataclasses import replace
from unittest.mock import Mock, patch

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.brokers.memory import Clock, Fault, MemoryBroker, abortable, fatal, retriable
from tests.delivery.doubles import (
    DEAD_LETTERS,
    HUGE_BYTES,
    LONG_TOKENS,
    OUTPUT,
    Killed,
    answered,
    partition,
    reason,
    record,
)
from tests.delivery.worker import BATCH, RETRY, Guarantee, Worker
from worker.errors import DeadLetterLimit, FatalError, Reason, Rejection
from worker.messages import Partition
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import BUSY_POLL_S
from worker.pipeline.fetch import PAUSE_AFTER_S
from worker.rules.crash_count import DEATHS, STARTS, Mark, parse, render
from worker.rules.dead_letter import is_truncated
from worker.rules.dead_letter_limit import DeadLetterLimits
from worker.rules.retry import RetryPolicy
from worker.rules.retry_headers import PREFIX, retry_copy, topics

P0, P1 = partition(0), partition(1)
RETRY_TOPICS = topics("group", (5.0,))
RETRY_PARTITION = Partition(RETRY_TOPICS[0][1], 0)
BOTH = pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(Clock())


def started(broker: MemoryBroker, guarantee: Guarantee = "exactly_once", **options: object) -> Worker:
    worker = Worker(broker, guarantee, **options)  # type: ignore[arg-type]  # options are the worker's own fields
    broker.assign(P0, P1)
    worker.loop.step()
    return worker


def offsets(broker: MemoryBroker, where: Partition = P0, *, dead: bool | None = None) -> list[int]:
    """Offsets of the records answered, in the order a reader sees; with ``dead`` only (or without) dead letters."""
    return [
        answered(output)[1]
        for output in broker.visible
        if answered(output)[0] == where and dead in {None, bool(reason(output))}
    ]


def committed(broker: MemoryBroker) -> dict[Partition, int]:
    """Committed offsets, without partitions that are still at their beginning."""
    return {where: offset for where, offset in broker.committed.items() if offset}


def reasons(broker: MemoryBroker) -> dict[int, str]:
    return {answered(output)[1]: reason(output) for output in broker.visible if reason(output)}


# Everything well ------------------------------------------------------------------------------------------------------


@BOTH
def test_every_record_is_answered_in_order_and_committed(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 10)
    broker.send(P1, *[b"ok"] * 5)
    worker.settle()
    assert offsets(broker, P0) == list(range(10))
    assert offsets(broker, P1) == list(range(5))
    assert committed(broker) == {P0: 10, P1: 5}
    assert worker.counted("records_consumed_total", topic="requests") == 15
    assert worker.counted("records_published_total") == 15


def test_lag_is_what_is_not_committed_whether_read_or_not(broker: MemoryBroker) -> None:
    worker = started(broker)
    worker.stuck = True
    broker.send(P0, *[b"ok"] * 100)
    for _ in range(30):
        worker.loop.step()
    assert 0 < worker.loop.in_flight < 100, "some are read, some are not"
    broker.clock.advance(10)
    worker.loop.step()
    assert worker.counted("consumer_lag", topic="requests", partition="0") == 100
    worker.stuck = False
    worker.settle()
    broker.clock.advance(10)
    worker.loop.step()
    assert worker.counted("consumer_lag", topic="requests", partition="0") == 0


def test_a_lone_record_waits_for_max_wait_and_no_longer(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok")
    began_s = broker.clock()
    while not broker.visible:
        worker.turn()
    # Two polls of the busy loop: one until the batch is offered, one until its result is there.
    assert broker.clock() - began_s == pytest.approx(BATCH.max_wait_s + 0.004, abs=0.003)


def test_tombstones_are_skipped_counted_and_committed(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, None, b"ok", None)
    worker.settle()
    assert offsets(broker) == [1]
    assert committed(broker) == {P0: 3}
    assert worker.counted("tombstones_total") == 2


def test_what_the_worker_committed_is_not_read_again(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 4)
    started(broker).settle()
    broker.send(P0, b"ok")
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3, 4]


# Failures of messages -------------------------------------------------------------------------------------------------


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


# Retry topics ---------------------------------------------------------------------------------------------------------


def retry_headers(**fields: int) -> list[tuple[str, bytes]]:
    """Headers of a record in a retry topic, due at once; these fields are somebody else's."""
    sent = retry_copy(record(), RETRY_PARTITION.topic, attempt=2, not_before_ms=0)
    theirs = {PREFIX + name.replace("_", "-"): b"%d" % value for name, value in fields.items()}
    return [(name, value or b"") for name, value in (dict(sent.headers) | theirs).items()]


@pytest.mark.parametrize("attempt", [-5, 0, 99, 10**400], ids=["negative", "none", "many", "absurd"])
def test_on_an_input_topic_a_record_has_its_first_attempt_whatever_it_says(broker: MemoryBroker, attempt: int) -> None:
    worker = started(broker, retry_topics=RETRY_TOPICS)
    broker.headers = retry_headers(attempt=attempt)
    broker.send(P0, b"flaky 1")
    worker.settle()
    (sent,) = broker.visible
    assert sent.topic == RETRY_PARTITION.topic
    assert dict(sent.headers)["xnli.retry.attempt"] == b"2"


@pytest.mark.parametrize(
    "fields",
    [
        {"not_before": 4_600_000},  # in an hour, in a topic of five seconds
        {"not_before": 10**400},
        {"timestamp": 10**400},
        {"timestamp": -(10**400)},
        {"attempt": -5},
    ],
    ids=["skewed", "never", "future", "past", "attempt"],
)
def test_absurd_headers_in_a_retry_topic_hold_up_nobody(broker: MemoryBroker, fields: dict[str, int]) -> None:
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(**fields)
    broker.send(RETRY_PARTITION, b"poison", b"ok", b"garbage")
    worker.settle()
    assert [output.topic for output in broker.visible] == [RETRY_PARTITION.topic, OUTPUT, DEAD_LETTERS]
    assert all(0 <= (output.timestamp_ms or 0) < 1 << 63 for output in broker.visible), "else no client sends it"


@pytest.mark.parametrize("mark", [Mark(), Mark(until=8)], ids=["ordinary", "quarantined"])
def test_a_record_in_a_retry_topic_waits_until_it_is_due(broker: MemoryBroker, mark: Mark) -> None:
    """Also in quarantine, and also for longer than the topic's delay: clocks may differ by so much."""
    broker.metadata[RETRY_PARTITION] = render(mark)
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(not_before=int((broker.clock() + 6) * 1000))
    broker.send(RETRY_PARTITION, b"ok")
    began_s = broker.clock()
    while not broker.visible and broker.clock() < began_s + 20:
        worker.turn()
    assert broker.clock() - began_s == pytest.approx(6.0, abs=0.2)


def test_a_dead_letter_that_could_not_be_read_names_its_attempt(broker: MemoryBroker) -> None:
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(attempt=3)
    broker.send(RETRY_PARTITION, b"garbage")
    worker.settle()
    (letter,) = broker.visible
    assert dict(letter.headers)["xnli.dlq.attempts"] == b"3"


# Outages --------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_broker_away_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 6)
    while not worker.loop.in_flight:
        worker.turn()
    broker.away = True
    began_s = broker.clock()
    turns = 0
    while broker.clock() < began_s + 60:
        worker.turn()
        turns += 1
    assert not broker.visible
    assert turns < 60 * 30, "a busy loop"
    broker.away = False
    worker.settle(RETRY.max_s + 2)
    assert offsets(broker) == list(range(6))
    assert reasons(broker) == {}


@BOTH
def test_a_registry_away_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    worker.codec.away = True
    broker.send(P0, *[b"ok"] * 30)
    broker.send(P1, *[b"ok"] * 30)
    worker.turn(200)
    assert worker.consumer.paused
    held = worker.loop.in_flight
    assert 0 < held <= 2 * BATCH.max_messages, "reading goes on though nothing can be decoded"
    broker.revoke(P1)
    worker.turn(10)
    worker.codec.away = False
    worker.settle()
    assert offsets(broker) == list(range(30))
    assert offsets(broker, P1) == []
    assert reasons(broker) == {}


@BOTH
def test_a_device_away_costs_no_attempt(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    worker.engine.away = 20
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert reasons(broker) == {}


@BOTH
def test_an_unwritable_dead_letter_topic_blocks_the_commit(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.unwritable = {DEAD_LETTERS}
    broker.send(P0, b"ok", b"garbage", b"ok")
    worker.turn(500)
    assert broker.committed.get(P0, 0) <= 1
    assert offsets(broker, dead=True) == []
    broker.unwritable = set()
    worker.settle()
    assert committed(broker) == {P0: 3}
    assert sorted(set(offsets(broker))) == [0, 1, 2]


@BOTH
def test_a_topic_that_is_missing_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.faults["produce"].extend([Fault(KafkaError(KafkaError._UNKNOWN_TOPIC))] * 3)
    broker.send(P0, b"ok", b"ok")
    worker.settle()
    assert sorted(set(offsets(broker))) == [0, 1]


def test_a_commit_that_cannot_be_sent_is_sent_later(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.send(P0, b"ok")
    broker.faults["commit"].append(retriable())
    member = broker.member
    assert member is not None
    refused, commit = 2, member.commit

    def refuse(**arguments: object) -> None:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise KafkaException(KafkaError(KafkaError._STATE))
        commit(**arguments)  # type: ignore[arg-type]  # passed through

    member.commit = refuse  # type: ignore[method-assign]
    worker.settle()
    worker.turn(30)
    assert committed(broker) == {P0: 1}
    assert offsets(broker) == [0]


def test_a_late_failure_of_an_old_commit_does_not_take_back_a_newer_one(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.faults["commit"].append(retriable())
    worker.consumer.commits.commit({P0: 5}, wait=False)
    worker.consumer.commits.commit({P0: 9}, wait=False)
    worker.turn(5)
    assert committed(broker) == {P0: 9}


# Transactions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_without_an_answer_is_asked_again(broker: MemoryBroker, *, applied: bool) -> None:
    worker = started(broker)
    broker.faults["commit_transaction"].append(retriable(applied=applied))
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.counted("transactions_total", result="committed") == 1


@pytest.mark.parametrize("call", ["produce", "send_offsets_to_transaction", "commit_transaction"])
def test_an_aborted_transaction_is_done_again(broker: MemoryBroker, call: str) -> None:
    worker = started(broker)
    broker.faults[call].append(abortable())
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.counted("transactions_total", result="aborted") == 1


@pytest.mark.parametrize("applied", [True, False])
def test_a_producer_lost_while_it_commits_is_replaced_and_nothing_is_answered_twice(
    broker: MemoryBroker, applied: bool
) -> None:
    worker = started(broker)
    broker.faults["commit_transaction"].append(fatal(applied=applied))
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert broker.committed[P0] == 4


def test_a_producer_is_lost_again_and_again(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.faults["send_offsets_to_transaction"].extend([abortable(), fatal()])
    broker.faults["abort_transaction"].append(fatal(KafkaError.INVALID_TXN_STATE))
    broker.faults["commit_transaction"].append(fatal())
    broker.faults["committed"].append(retriable())
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_a_fenced_worker_whose_name_is_contested_asks_the_group_first(broker: MemoryBroker) -> None:
    worker = started(broker, contested=True)
    broker.faults["send_offsets_to_transaction"].append(fatal())
    broker.faults["commit"].extend([retriable()] * 3)
    broker.faults["init_transactions"].append(fatal(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    broker.send(P0, b"ok")
    with pytest.raises(FatalError, match="grants no transactions"):
        worker.settle()
    assert not broker.faults["commit"], "it took the name back before the group had answered"


@pytest.mark.parametrize("how", ["revoke", "lose"])
def test_a_partition_that_leaves_while_an_abort_is_unanswered_is_not_written_again(
    broker: MemoryBroker, how: str
) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 3)
    broker.send(P1, *[b"ok"] * 3)
    broker.faults["send_offsets_to_transaction"].append(abortable())
    broker.faults["abort_transaction"].append(retriable())
    broker.faults["init_transactions"].extend([retriable()] * 100)
    while broker.faults["abort_transaction"]:
        worker.turn()
    getattr(broker, how)(P0)
    worker.turn(2)
    broker.faults.clear()
    worker.settle()
    # It is somebody else's, who may have answered it meanwhile.
    assert offsets(broker, P0) == []
    assert committed(broker) == {P1: 3}
    newcomer = started(broker)
    newcomer.settle()
    assert offsets(broker, P0) == [0, 1, 2]
    assert offsets(broker, P1) == [0, 1, 2]


def test_a_partition_that_leaves_while_the_queue_is_full_is_not_written_again(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 3)
    broker.queue_limit = 0
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.lose(P0)
    worker.loop.step()
    broker.queue_limit = 100
    worker.turn(300)
    assert offsets(broker) == []
    assert committed(broker) == {}


# Rebalances -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("cooperative", [True, False])
def test_on_revoke_what_is_computed_is_committed_and_the_rest_left(
    broker: MemoryBroker, guarantee: Guarantee, *, cooperative: bool
) -> None:
    worker = started(broker, guarantee, cooperative=cooperative)
    broker.send(P0, *[b"ok"] * 6)
    while worker.inference.has_room:  # a batch of four is offered, two records stay in line
        worker.loop.step()
    broker.revoke(P0, P1)
    worker.loop.step()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.loop.in_flight == 0
    broker.assign(P0, P1)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4, 5]
    assert committed(broker) == {P0: 6}


def test_a_late_result_of_a_former_assignment_is_dropped(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True)
    broker.send(P0, *[b"ok"] * 4)
    while worker.inference.has_room:
        worker.loop.step()
    began_s = broker.clock()
    broker.revoke(P0)
    broker.assign(P0)
    worker.loop.step()
    assert broker.clock() - began_s == pytest.approx(10.0, abs=0.1), "the deadline of a revoke"
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.engine.runs == [4, 4], "computed under both assignments, published under one"


@BOTH
def test_of_a_lost_partition_nothing_is_committed(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 4)
    while worker.inference.has_room:
        worker.loop.step()
    worker.infer()
    broker.lose(P0)
    worker.turn(100)
    assert broker.visible == []
    assert committed(broker) == {}


def test_a_retry_of_a_partition_that_left_is_forgotten(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"poison")
    while not worker.counted("records_retried_total"):
        worker.turn()
    broker.revoke(P0)
    broker.assign(P0)
    worker.settle()
    assert reasons(broker) == {0: "inference"}
    assert offsets(broker) == [0]


def test_an_output_refused_after_its_partition_left_does_not_end_the_worker(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    broker.send(P0, b"huge")
    broker.send(P1, b"ok")
    while worker.loop.in_flight < 2:
        worker.turn()
    broker.away = True
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.lose(P0)
    worker.loop.step()
    broker.away = False
    worker.settle()
    assert committed(broker) == {P1: 1}


def test_a_revoke_while_transactions_fail_neither_spins_nor_lengthens_the_back_off(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    broker.faults["send_offsets_to_transaction"].extend([abortable()] * 1_000)
    while worker.inference.has_room:
        worker.loop.step()
    broker.revoke(P0)
    worker.loop.step()
    assert worker.counted("transactions_total", result="aborted") < 20


def test_a_partition_assigned_under_pressure_is_paused(broker: MemoryBroker) -> None:
    worker = Worker(broker)
    broker.assign(P0)
    broker.send(P0, *[b"ok"] * 40)
    worker.settle()  # beyond what is read with care at the start
    worker.stuck = True
    broker.send(P0, *[b"ok"] * 160)
    broker.send(P1, *[b"ok"] * 5)
    worker.turn(30)
    assert worker.loop.in_flight >= BATCHES_IN_HAND * BATCH.max_messages
    assert worker.counted("paused_partitions") == 0  # it may be a moment's matter
    worker.turn(math.ceil(PAUSE_AFTER_S / BUSY_POLL_S))
    assert worker.consumer.paused
    held = worker.loop.in_flight
    assert held <= (BATCHES_IN_HAND + 1) * BATCH.max_messages
    broker.assign(P1)
    worker.turn(5)
    assert worker.loop.in_flight == held
    assert worker.counted("paused_partitions") == 2
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == list(range(200))
    assert offsets(broker, P1) == list(range(5))


def test_bytes_in_hand_are_bounded_headers_included(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True, batch=BatchPolicy(max_messages=1_000, max_tokens=1 << 20, max_wait_s=0.05))
    broker.headers = [("big", b"x" * (1 << 20))]
    broker.send(P0, *[b"ok"] * 300)
    worker.turn(300)
    assert worker.consumer.paused
    assert worker.loop.in_flight < 80, "64 MiB and one poll more"


def test_tokens_in_hand_are_bounded_whatever_a_poll_brings(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True)
    for where in (P0, P1):
        broker.send(where, *[b"long"] * 10)
    for _ in range(30):
        worker.turn()
        assert worker.loop.handoff.tokens < BATCHES_IN_HAND * BATCH.max_tokens + LONG_TOKENS
    worker.stuck = False
    worker.settle()
    assert offsets(broker, P0) == offsets(broker, P1) == list(range(10))


def test_a_revoke_in_an_outage_ends_before_the_watchdog_thinks_of_a_hang(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    while not worker.loop.in_flight:
        worker.turn()
    broker.away = True
    broker.revoke(P0, P1)
    worker.loop.step()
    assert worker.health.healthy(broker.clock()).problems == ()


# The end --------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_drain_answers_what_is_in_hand_and_reads_nothing_more(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 3)
    while worker.loop.in_flight < 3:
        worker.loop.step()
    broker.send(P0, b"ok")
    began_s = broker.clock()
    assert worker.loop.drain(25.0)
    assert broker.clock() - began_s < 0.2
    worker.loop.close()
    assert offsets(broker) == [0, 1, 2]
    assert committed(broker) == {P0: 3}


def test_a_drain_without_the_registry_ends_in_time_and_commits_what_it_can(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok", b"ok")
    while worker.loop.in_flight < 2:
        worker.loop.step()
    worker.codec.away = True
    broker.send(P0, b"ok")
    worker.turn()
    began_s = broker.clock()
    assert not worker.loop.drain(25.0)
    assert broker.clock() - began_s == pytest.approx(25.0, abs=0.5)
    worker.loop.close()
    assert committed(broker) == {P0: 2}
    assert offsets(broker) == [0, 1]


@BOTH
@pytest.mark.parametrize("away", ["broker", "device"])
def test_closing_after_a_drain_that_ran_out_of_time_takes_seconds(
    broker: MemoryBroker, guarantee: Guarantee, away: str
) -> None:
    """A supervisor that sent SIGTERM kills after 30 s, and most of them are spent."""
    worker = started(broker, guarantee, stuck=away == "device")
    broker.send(P0, *[b"ok"] * 4)
    while not worker.loop.in_flight:
        worker.turn()
    broker.away = away == "broker"
    assert not worker.loop.drain(20.0)
    began_s = broker.clock()
    worker.loop.close()
    assert broker.clock() - began_s <= 4


@pytest.mark.parametrize("turns", range(10))
def test_an_outage_leaves_a_quarantined_partition_time_to_close(broker: MemoryBroker, turns: int) -> None:
    """Wherever it meets the worker: also before a record is marked, which is a commit that is waited for."""
    broker.metadata[P0] = render(Mark(until=8))
    for where in (P0, P1):
        broker.send(where, *[b"ok"] * 6)
    worker = started(broker)
    worker.turn(turns)
    broker.away = True
    began_s = broker.clock()
    worker.loop.drain(20.0)
    worker.loop.close()
    assert broker.clock() - began_s < 29


def test_a_drain_decides_an_unanswered_commit(broker: MemoryBroker) -> None:
    """Its partitions are gone, yet readers wait for the transaction."""
    worker = started(broker)
    broker.faults["commit_transaction"].extend([retriable()] * 3)
    broker.send(P0, b"ok")
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.lose(P0, P1)
    worker.loop.step()
    assert worker.loop.in_flight == 0
    assert worker.loop.drain(25.0)
    assert broker.undecided is None
    # It had not arrived, and the record is its new owner's.
    assert (offsets(broker), committed(broker)) == ([], {})


def test_a_crash_of_the_inference_stage_comes_up_in_a_step(broker: MemoryBroker) -> None:
    worker = started(broker)
    worker.inference._crash = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        worker.loop.step()


def test_the_output_of_a_result_goes_to_the_output_topic(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok", b"garbage")
    worker.settle()
    assert [output.topic for output in broker.visible] == [OUTPUT, DEAD_LETTERS]


# Quarantine: the count of starts ------------------------------------------------------------------------------------


def starts(broker: MemoryBroker, where: Partition = P0) -> int:
    return parse(broker.metadata.get(where)).starts


def test_a_mark_that_could_not_be_committed_does_not_take_back_what_was_answered_since(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 4)
    worker = Worker(broker)
    broker.faults["commit"].extend([retriable()] * 1_000)
    broker.assign(P0)
    worker.settle()
    broker.faults.clear()
    worker.turn(10)
    assert committed(broker) == {P0: 4}
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_marks_are_not_taken_back_over_a_commit_without_an_answer(broker: MemoryBroker) -> None:
    """An offset committed outside the transaction would win over the one inside."""
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    broker.faults["commit_transaction"].extend([retriable()] * 100)
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.revoke(P0)
    worker.loop.step()
    broker.faults.clear()
    while broker.undecided is not None:
        worker.turn()
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_a_start_that_ends_in_an_error_stays_counted(broker: MemoryBroker) -> None:
    """A device that a text broke for good ends the process in good order, and again, and again."""
    broker.send(P0, b"ok")
    for times in (1, 2):
        worker = started(broker)
        worker.stuck = True
        worker.turn(3)
        worker.inference._crash = FatalError("the device failed and this process cannot use it any more")
        with pytest.raises(FatalError):
            worker.turn(3)
        with contextlib.suppress(FatalError):
            worker.loop.close()
        assert starts(broker) == times


def test_an_idle_worker_counts_no_start(broker: MemoryBroker) -> None:
    for _ in range(5):
        worker = started(broker)
        worker.turn(5)
        assert not any(broker.metadata.values())


@pytest.mark.parametrize("how", ["drain", "revoke"])
def test_a_partition_handed_over_in_good_order_is_not_counted(broker: MemoryBroker, how: str) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 20)
    worker.turn(2)
    assert starts(broker) == 1
    if how == "drain":
        assert worker.loop.drain(5.0)
        worker.loop.close()
    else:
        broker.revoke(P0)
        worker.turn()
    assert starts(broker) == 0


def test_kills_from_outside_that_come_after_progress_never_quarantine(broker: MemoryBroker) -> None:
    for place in range(7):
        broker.send(P0, *[b"ok"] * 30)
        worker = started(broker)
        while broker.committed.get(P0, 0) <= 30 * place:
            worker.turn()
            assert not any(worker.loop.quarantine.quarantines())
    started(broker).settle()
    assert offsets(broker) == list(range(210))
    assert reasons(broker) == {}
    assert not any(broker.metadata.values())


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_kills_from_outside_condemn_nobody_however_fast_they_come(seed: int) -> None:
    broker, draw = MemoryBroker(Clock()), random.Random(seed)
    broker.send(P0, *[b"ok"] * 40)
    broker.send(P1, *[b"ok"] * 40)
    for _ in range(10):
        worker = started(broker)
        deadline_s = broker.clock() + draw.uniform(0.0, 4.0)
        while broker.clock() < deadline_s:
            worker.turn()
        # and dies
    started(broker).settle()
    assert offsets(broker, P0) == offsets(broker, P1) == list(range(40))
    assert reasons(broker) == {}
    assert not any(broker.metadata.values()), "a quarantine lifts itself"


@BOTH
def test_a_record_that_kills_is_dead_lettered_and_no_neighbour_of_it(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    """Not even a quarantined one that waits for its next attempt, marked, while the killer has its turn."""
    broker.send(P0, b"ok", b"flaky 2", b"kill", b"ok", b"kill")
    broker.send(P1, b"flaky 2", b"poison", b"ok")
    began = 0
    while True:
        began += 1
        worker = started(broker, guarantee)
        try:
            worker.settle(200)
        except Killed:
            continue
        break
    assert began <= 6 + DEATHS + 1, "six restarts for the first of them, two for the next"
    assert offsets(broker, P0) == [0, 1, 2, 3, 4]
    assert offsets(broker, P1) == [0, 1, 2]
    assert {answered(output): reason(output) for output in broker.visible if reason(output)} == {
        (P0, 2): "crash",
        (P0, 4): "crash",
        (P1, 1): "inference",
    }


@given(place=st.integers(0, 120), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_one_killer_costs_at_most_six_restarts(place: int, seed: int) -> None:
    """Wherever it stands, and however many answers before it get out on every start."""
    broker, draw = MemoryBroker(Clock()), random.Random(seed)
    broker.send(P0, *[b"ok"] * place, b"kill", *[b"ok"] * 50)
    broker.send(P1, *[b"ok"] * 100)
    restarts = -1
    while broker.committed.get(P0, 0) < place + 51:
        restarts += 1
        worker = started(broker)
        with contextlib.suppress(Killed):
            for _ in range(2_000):
                worker.loop.step()
                for _ in range(draw.randrange(3)):
                    worker.infer()
                if broker.committed.get(P0, 0) == place + 51:
                    break
    assert restarts <= 6
    assert offsets(broker, P0, dead=False) == [i for i in range(place + 51) if i != place]


def test_a_registry_away_is_asked_now_and_then_in_quarantine_too(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.metadata[P0] = render(Mark(until=8))
    broker.send(P0, b"ok", b"ok")
    worker = Worker(broker)
    worker.codec.away = True
    read = Mock(wraps=worker.codec.read)
    monkeypatch.setattr(worker.codec, "read", read)
    store = Mock(wraps=broker.store)
    monkeypatch.setattr(broker, "store", store)
    broker.assign(P0)
    began_s = broker.clock()
    while broker.clock() < began_s + 20:
        worker.turn()
    assert 20 / RETRY.max_s <= read.call_count <= 20 / RETRY.max_s + 6, "less at first: 0.2 s, 0.4 s, ..."
    assert store.call_count <= 2, "the mark is committed once"
    worker.codec.away = False
    worker.settle()
    assert offsets(broker) == [0, 1]


def test_progress_resets_the_count(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok")
    worker.settle()
    assert starts(broker) == 0


def test_back_off_after_failed_publishes_grows_and_is_reset(broker: MemoryBroker) -> None:
    slow = RetryPolicy(max_attempts=3, initial_s=1.0, max_s=30.0, multiplier=2.0, jitter=0.0)
    worker = started(broker, retry=slow)
    for _ in range(2):
        broker.faults["send_offsets_to_transaction"].extend([abortable()] * 3)
        broker.send(P0, b"ok")
        began_s = broker.clock()
        worker.settle()
        assert 7.0 < broker.clock() - began_s < 8.0  # 1 + 2 + 4


def test_a_consumer_that_was_fenced_ends_the_worker_however_it_is_told(broker: MemoryBroker) -> None:
    """After an outage a static member may be fenced by its own answer that got lost; polled, the error has no flag."""
    worker = started(broker)
    told = KafkaError(KafkaError._FATAL, "Static consumer fenced by other consumer with same group.instance.id")
    assert not told.fatal()
    with (
        patch.object(worker.consumer._client, "poll", lambda _: Mock(error=lambda: told)),
        pytest.raises(FatalError, match="Static consumer fenced"),
    ):
        worker.turn()
