"""One transactional producer after another, over Kafka in memory. What the loop makes of it is in test_loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import structlog

from tests.brokers.memory import Clock, MemoryBroker, abortable, fatal, retriable
from tests.builders import IgnoreRebalances, output
from tests.delivery.doubles import partition
from worker.errors import BrokerAway, TransactionAborted, Unpublishable
from worker.kafka.consumer import Consumer
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.messages import CommitBatch, Partition, Position

P0 = partition(0)


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    broker = MemoryBroker(Clock())
    with broker.plugged_in():
        yield broker


@pytest.fixture
def consumer(broker: MemoryBroker) -> Consumer:
    consumer = Consumer({"partition.assignment.strategy": "cooperative-sticky"})
    consumer.subscribe([P0.topic], IgnoreRebalances())
    broker.assign(P0)
    consumer.poll(1, 0)
    return consumer


@pytest.fixture
def calls() -> list[Callable[[], None]]:
    """Calls of librdkafka that have not returned."""
    return []


@pytest.fixture
def renewing(broker: MemoryBroker, consumer: Consumer, calls: list[Callable[[], None]]) -> RecoveringPublisher:
    clock = broker.clock
    publisher = RecoveringPublisher(
        lambda most_bytes: TransactionalPublisher(
            {"transactional.id": "x"} | ({"batch.size": most_bytes} if most_bytes else {}),
            consumer,
            clock,
            calls.append,
        ),
        lambda: Trial({"transactional.id": "x"}, consumer, clock, calls.append),
        consumer,
        consumer.commits.committed,
        clock,
    )
    publisher.start(1.0)
    return publisher


def publish(renewing: RecoveringPublisher, asked: CommitBatch, calls: list[Callable[[], None]]) -> bool:
    """To the end: every call returns."""
    while not renewing.publish(asked, 0.1):
        while calls:
            calls.pop()()
    return True


def release(consumer: Consumer) -> CommitBatch:
    generation = consumer.assignment[P0]
    return CommitBatch(((Position(P0, 0, generation), output(b"answer")),), {P0: 1}, {P0: generation})


def test_a_call_that_never_returns_costs_a_producer_and_no_more(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    assert not renewing.publish(release(consumer), 5.0)
    broker.clock.advance(5.0)
    assert not renewing.publish(release(consumer), 5.0)  # librdkafka gets a second to keep its own time-out
    broker.clock.advance(1.0)
    with pytest.raises(TransactionAborted, match="does not return"):
        renewing.publish(release(consumer), 5.0)
    calls.clear()
    assert publish(renewing, release(consumer), calls)
    assert (len(broker.visible), broker.committed[P0]) == (1, 1)


@pytest.mark.parametrize("answered", [False, True])
def test_a_partition_that_leaves_takes_the_open_transaction_with_it(
    broker: MemoryBroker,
    consumer: Consumer,
    renewing: RecoveringPublisher,
    calls: list[Callable[[], None]],
    answered: bool,
) -> None:
    asked = release(consumer)
    assert not renewing.publish(asked, 5.0)
    if answered:
        calls.pop()()
    broker.lose(P0)
    consumer.poll(1, 0)
    with pytest.raises(TransactionAborted):
        publish(renewing, asked, calls)
    assert not broker.visible
    assert P0 not in broker.committed


def of(consumer: Consumer, values: list[bytes], begin: int = 0) -> CommitBatch:
    generation = consumer.assignment[P0]
    outputs = tuple((Position(P0, begin + i, generation), output(value)) for i, value in enumerate(values))
    return CommitBatch(outputs, {P0: begin + len(values)}, {P0: generation})


def test_a_trial_names_all_that_are_refused_and_the_rest_goes_out_in_order(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.broker_limit_bytes = 100
    values = [b"x" * 101 if i % 3 == 0 else b"%d" % i for i in range(20)]
    with pytest.raises(TransactionAborted):
        publish(renewing, of(consumer, values), calls)
    with pytest.raises(Unpublishable) as refused:
        publish(renewing, of(consumer, values), calls)
    named = [each.position.offset for each in (refused.value, *refused.value.others)]
    assert sorted(named) == list(range(0, 20, 3))
    kept = [value for value in values if len(value) < 100]
    assert publish(renewing, of(consumer, kept), calls)
    assert [each.value for each in broker.visible] == kept


def test_where_only_the_batch_is_too_large_batches_become_smaller_for_good(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    """No limit is known, and each record is within it."""
    broker.broker_limit_bytes = 400_000
    values = [b"x" * 50_000] * 30
    aborted = 0
    for begin in range(0, 300, 30):
        while True:
            try:
                publish(renewing, of(consumer, values, begin), calls)
                break
            except TransactionAborted:
                aborted += 1
    assert len(broker.visible) == 300
    assert aborted == 2  # 1,000,000 and 500,000


def test_what_the_client_itself_refuses_is_named_at_once(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.client_limit_bytes = 100
    values = [b"x" * 101, b"small", b"x" * 102]
    with pytest.raises(Unpublishable) as refused:
        publish(renewing, of(consumer, values), calls)
    assert len(refused.value.others) == 1
    assert publish(renewing, of(consumer, [b"small"]), calls)


def test_of_what_the_broker_refuses_the_second_try_names_the_culprit(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.broker_limit_bytes = 100
    generation = consumer.assignment[P0]
    values = [b"small", b"x" * 200, b"small", b"small"]
    outputs = tuple((Position(P0, offset, generation), output(value)) for offset, value in enumerate(values))
    asked = CommitBatch(outputs, {P0: 4}, {P0: generation})
    with pytest.raises(TransactionAborted):
        publish(renewing, asked, calls)
    with pytest.raises(Unpublishable) as refused:
        publish(renewing, asked, calls)
    assert refused.value.position.offset == 1
    assert not broker.visible


def test_of_what_is_larger_than_a_batch_the_first_try_names_all_culprits(
    broker: MemoryBroker, consumer: Consumer
) -> None:
    broker.broker_limit_bytes = 100
    config = {"transactional.id": "x", "batch.size": 100}
    publisher = TransactionalPublisher(config, consumer, broker.clock, lambda call: call())
    generation = consumer.assignment[P0]
    values = [b"small", b"x" * 200, b"small", b"x" * 300, b"small"]
    outputs = tuple((Position(P0, offset, generation), output(value)) for offset, value in enumerate(values))
    with pytest.raises(Unpublishable) as refused:
        publisher.publish(CommitBatch(outputs, {P0: 5}, {P0: generation}), 5.0)
    assert [one.position.offset for one in (refused.value, *refused.value.others)] == [1, 3]


def test_a_transaction_broken_off_before_its_offsets_is_aborted(broker: MemoryBroker, consumer: Consumer) -> None:
    threads = iter([False, True])

    def spawn(call: Callable[[], None]) -> None:
        if not next(threads):
            raise RuntimeError("can't start new thread")
        call()

    publisher = TransactionalPublisher({"transactional.id": "x"}, consumer, broker.clock, spawn)
    with pytest.raises(RuntimeError, match="thread"):
        publisher.publish(release(consumer), 5.0)
    with pytest.raises(TransactionAborted):
        publisher.publish(release(consumer), 5.0)
    assert not broker.visible
    assert publisher.publish(release(consumer), 5.0)
    assert len(broker.visible) == 1


def test_closing_aborts_what_is_open(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    assert not renewing.publish(release(consumer), 5.0)
    calls.pop()()
    renewing.close()
    assert (broker.visible, broker.undecided) == ([], None)


def test_in_doubt_the_same_release_is_asked_for_until_the_broker_says(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.faults["commit_transaction"].append(fatal(applied=True))
    broker.faults["init_transactions"].append(retriable())
    broker.faults["committed"].append(retriable())
    for _ in range(3):  # the commit, the new producer's start, the committed offsets
        with pytest.raises(BrokerAway):
            publish(renewing, release(consumer), calls)
    publish(renewing, release(consumer), calls)
    assert len(broker.visible) == 1


def test_a_doubt_about_a_partition_that_left_is_its_new_owners(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    asked = release(consumer)
    broker.faults["commit_transaction"].append(fatal())
    with pytest.raises(BrokerAway):
        publish(renewing, asked, calls)
    broker.lose(P0)
    consumer.poll(1, 0)
    publish(renewing, asked, calls)
    assert not broker.visible
    assert Partition(P0.topic, P0.number) not in broker.committed


@pytest.mark.parametrize("ends_by", ["commit", "abort"])
def test_an_end_that_arrives_late_meets_no_other_transaction(
    broker: MemoryBroker,
    consumer: Consumer,
    renewing: RecoveringPublisher,
    calls: list[Callable[[], None]],
    ends_by: str,
) -> None:
    """The client repeats it by itself and calls it a success: only its debug log tells."""
    generation = consumer.assignment[P0]
    first, second = (
        release(consumer),
        CommitBatch(((Position(P0, 1, generation), output(b"2")),), {P0: 2}, {P0: generation}),
    )
    broker.lost_ends = 1
    if ends_by == "abort":
        broker.faults["send_offsets_to_transaction"].append(abortable())
        with pytest.raises(TransactionAborted):
            publish(renewing, first, calls)
    assert len(broker.late_ends) == (ends_by == "abort")
    publish(renewing, first, calls)
    publish(renewing, second, calls)
    assert [seen.value for seen in broker.visible] == [b"answer", b"2"]
    assert broker.committed[P0] == 2


@pytest.mark.parametrize("call", ["commit_transaction", "abort_transaction"])
@pytest.mark.parametrize("applied", [False, True])
def test_an_end_that_is_not_answered_costs_the_producer(
    broker: MemoryBroker,
    consumer: Consumer,
    renewing: RecoveringPublisher,
    calls: list[Callable[[], None]],
    call: str,
    applied: bool,
) -> None:
    epoch = broker.epoch
    # An abort is asked for again until its time is up.
    broker.faults[call].extend([retriable(applied=applied)] * (1 if call == "commit_transaction" else 100))
    if call == "abort_transaction":
        broker.faults["send_offsets_to_transaction"].append(abortable())
    with pytest.raises(BrokerAway if call == "commit_transaction" else TransactionAborted):
        publish(renewing, release(consumer), calls)
    broker.faults.clear()
    with suppress(TransactionAborted):
        publish(renewing, release(consumer), calls)
    assert broker.epoch == epoch + 1
    if P0 not in broker.committed:
        publish(renewing, release(consumer), calls)
    assert (len(broker.visible), broker.committed[P0]) == (1, 1)


def test_what_is_late_is_left_to_the_successor(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    """Where the client has aborted, giving it up with a request unanswered ends the process."""
    epoch = broker.epoch
    broker.faults["abort_transaction"].append(fatal())
    broker.queue_limit = 0
    with pytest.raises(TransactionAborted):
        publish(renewing, release(consumer), calls)
    assert broker.faults["abort_transaction"], "the client was asked to abort"
    broker.queue_limit = 100
    publish(renewing, release(consumer), calls)
    assert broker.epoch == epoch + 1
    assert (len(broker.visible), broker.committed[P0]) == (1, 1)


def test_a_client_that_logs_no_ends_is_named_once(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.logs_ends = False
    with structlog.testing.capture_logs() as lines:
        publish(renewing, release(consumer), calls)
        publish(renewing, release(consumer), calls)
    assert [line["event"] for line in lines] == ["lost_requests_unseen"]


def test_without_doubt_any_release_may_follow(
    broker: MemoryBroker, consumer: Consumer, renewing: RecoveringPublisher, calls: list[Callable[[], None]]
) -> None:
    broker.faults["send_offsets_to_transaction"].append(fatal())
    broker.faults["init_transactions"].append(retriable())
    for _ in range(2):
        with pytest.raises(TransactionAborted):
            publish(renewing, release(consumer), calls)
    publish(renewing, release(consumer), calls)
    assert len(broker.visible) == 1
