"""The delivery core as a state machine: whatever happens in whatever order, the invariants of delivery hold.

The real loop, publishers, consumer, ledger, batcher and inference stage run over Kafka in memory. Rules let partitions
come and go, records arrive, the device work, calls fail in every way librdkafka knows, other workers take over, and
the process die. After each rule a model, which knows nothing but what was sent, looks at what a read_committed reader
and a new owner of the partition would see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import ClassVar

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.brokers.memory import Clock, Fault, MemoryBroker, abortable, fatal, retriable
from tests.delivery.doubles import (
    DEAD_LETTERS,
    HUGE_BYTES,
    OUTPUT,
    Codec,
    Engine,
    Killed,
    answered,
    name,
    partition,
    reason,
)
from tests.delivery.worker import BATCH, Guarantee, Worker
from worker.errors import FatalError
from worker.messages import Output, OutputKind, Partition, Position
from worker.pipeline.batch import BATCHES_IN_HAND

PARTITIONS = tuple(partition(number) for number in range(3))
WORDS = (b"ok", b"ok", b"ok", b"poison", b"flaky 1", b"flaky 2", b"garbage", b"huge", b"mute", b"kill", None)
# The outcome of each word: a result, a dead letter's reason, or nothing.
WANTED = {b"poison": "inference", b"garbage": "malformed", b"huge": "too_large", b"mute": "inference", b"kill": "crash"}
FAULTS: dict[str, tuple[Callable[[], Fault], ...]] = {
    "send_offsets_to_transaction": (retriable, abortable, fatal),
    "commit_transaction": (
        retriable,
        lambda: retriable(applied=True),
        abortable,
        fatal,
        lambda: fatal(applied=True),
    ),
    "abort_transaction": (retriable, lambda: retriable(applied=True), fatal),
    "init_transactions": (retriable,),
    "produce": (abortable,),
    "commit": (retriable,),
}

some_partitions = st.sets(st.sampled_from(PARTITIONS), min_size=1)


class Delivery(RuleBasedStateMachine):
    guarantee: ClassVar[Guarantee]
    faults: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker(Clock())
        self.broker.client_limit_bytes = HUGE_BYTES // 2
        self.worker = self.born()
        self.told: set[Partition] = set()  # what the group has given to our member, served already or not
        self.accidents = 0  # deaths that no record is to blame for

    def born(self) -> Worker:
        return Worker(self.broker, self.guarantee, Engine(), Codec())

    # What the world does ----------------------------------------------------------------------------------------------

    @rule(where=st.sampled_from(PARTITIONS), words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    def send(self, where: Partition, words: list[bytes | None]) -> None:
        self.broker.send(where, *words)

    @initialize(words=st.lists(st.sampled_from(WORDS), min_size=5, max_size=12), by_broker=st.booleans())
    def work_waits(self, words: list[bytes | None], by_broker: bool) -> None:
        """Some; what is too large is refused by the client, or by the broker, which blames its neighbours too."""
        if by_broker:
            self.broker.client_limit_bytes, self.broker.broker_limit_bytes = 2**30, HUGE_BYTES // 2
        self.broker.send(PARTITIONS[0], *words)
        self.assign(set(PARTITIONS))

    @rule(partitions=some_partitions)
    def assign(self, partitions: set[Partition]) -> None:
        fresh = sorted(partitions - self.told)
        self.told |= set(fresh)
        if fresh:
            self.broker.assign(*fresh)

    @rule(partitions=some_partitions)
    def revoke(self, partitions: set[Partition]) -> None:
        gone = sorted(partitions & self.told)
        self.told -= set(gone)
        if gone:
            self.broker.revoke(*gone)

    @rule(partitions=some_partitions)
    def lose(self, partitions: set[Partition]) -> None:
        gone = sorted(partitions & self.told)
        self.told -= set(gone)
        if gone:
            self.broker.lose(*gone)

    @rule(where=st.sampled_from(PARTITIONS), records=st.integers(1, 3))
    def another_worker(self, where: Partition, records: int) -> None:
        """Somebody else owns the partition and answers some records of it, exactly once."""
        member = self.broker.member
        assert member is not None
        if where in self.told or where in member.owned or self.broker.is_unstable(where):
            return
        begin = self.broker.committed.get(where, 0)
        for offset, value in enumerate(self.broker.inputs.get(where, [])[begin : begin + records], begin):
            if value is not None:
                self.broker.visible.append(elsewhere(where, offset, value))
            self.broker.committed[where] = offset + 1
            self.broker.metadata[where] = ""

    @rule(seconds=st.sampled_from([0.01, 0.3, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.broker.clock.advance(seconds)

    @rule(away=st.booleans())
    def broker_away(self, away: bool) -> None:
        self.broker.away = away

    @rule(away=st.booleans())
    def registry_away(self, away: bool) -> None:
        self.worker.codec.away = away

    @rule(unwritable=st.booleans())
    def dead_letters_unwritable(self, unwritable: bool) -> None:
        self.broker.unwritable = {DEAD_LETTERS} if unwritable else set()

    @rule(passes=st.integers(1, 3))
    def device_away(self, passes: int) -> None:
        self.worker.engine.away = passes

    @rule(stuck=st.booleans())
    def device_stuck(self, stuck: bool) -> None:
        self.worker.stuck = stuck

    @rule(slow=st.booleans())
    def offsets_take_time(self, slow: bool) -> None:
        self.worker.slow_offsets = slow

    @rule()
    def offsets_are_answered(self) -> None:
        self.worker.answer_offsets()

    @rule(data=st.data())
    def call_fails(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.faults))
        self.broker.faults[call].append(data.draw(st.sampled_from(FAULTS[call]))())

    @rule(partitions=some_partitions, lost=st.booleans(), records=st.integers(1, 6))
    def taken_over(self, partitions: set[Partition], lost: bool, records: int) -> None:
        """Partitions leave while something is under way, and their next owner goes to work at once."""
        (self.lose if lost else self.revoke)(partitions)
        self.step(1)
        for where in sorted(partitions):
            self.another_worker(where, records)

    @rule(unanswered=st.sampled_from(["commit_transaction", "abort_transaction"]), times=st.integers(1, 4))
    def transaction_in_doubt(self, unanswered: str, times: int) -> None:
        if unanswered in self.faults:
            if unanswered == "abort_transaction":
                self.broker.faults["send_offsets_to_transaction"].append(abortable())
            self.broker.faults[unanswered].extend([retriable()] * times)

    # What the worker does ---------------------------------------------------------------------------------------------

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        def steps() -> None:
            for _ in range(times):
                self.worker.loop.step()

        self.alive(steps)

    @rule()
    def infer(self) -> None:
        self.alive(self.worker.infer)

    @rule(times=st.integers(1, 20))
    def turn(self, times: int) -> None:
        self.alive(lambda: self.worker.turn(times))

    @rule()
    def crash(self) -> None:
        """The process dies where it stands, and no record is to blame."""
        self.accidents += 1
        self.reborn()

    def reborn(self) -> None:
        """Another process begins, in the group and with nothing assigned."""
        self.told = set()
        self.broker.away = False
        self.broker.faults.clear()
        self.worker = self.born()

    @precondition(lambda self: not self.broker.away)
    @rule()
    def drain(self) -> None:
        self.worker.slow_offsets = False
        self.worker.answer_offsets()

        def end() -> None:
            self.worker.loop.drain(5.0)
            self.worker.loop.close()

        if self.alive(end):
            self.reborn()

    def alive(self, act: Callable[[], object]) -> bool:
        """Do something that may end the process. False if it did."""
        try:
            act()
        except FatalError:
            self.crash()
        except Killed:
            self.reborn()
        else:
            return True
        return False

    # What must hold ---------------------------------------------------------------------------------------------------

    @invariant()
    def answers_are_right(self) -> None:
        for output in self.broker.visible:
            where, offset = answered(output)
            value = self.broker.inputs[where][offset]
            assert value is not None, "a tombstone was answered"
            # An accident may befall a quarantined record while it is in hand: then it looks guilty.
            assert reason(output) in {WANTED.get(value, ""), "crash" if self.accidents else ""}

    @invariant()
    def nothing_unresolved_is_committed(self) -> None:
        """Invariants 1 and 9."""
        done = {answered(output) for output in self.broker.visible}
        for where, behind in self.broker.committed.items():
            owed = {(where, offset) for offset in range(behind) if self.broker.inputs[where][offset] is not None}
            assert owed <= done, "committed past a record that nobody answered"

    @invariant()
    def memory_is_bounded(self) -> None:
        """Invariant 5: what is in hand when fetching stops, and one poll more."""
        assert self.worker.loop.in_flight <= (BATCHES_IN_HAND + 1) * BATCH.max_messages
        if self.worker.consumer.paused:
            member = self.broker.member
            assert member is not None
            assert all(owned.paused for owned in member.owned.values())

    def teardown(self) -> None:
        """Everything mends, and every record is answered in the end."""
        self.broker.away = self.worker.codec.away = self.worker.stuck = self.worker.slow_offsets = False
        self.worker.answer_offsets()
        self.broker.unwritable = set()
        self.broker.faults.clear()
        records = sum(map(len, self.broker.inputs.values()))
        for _ in range(10 + 6 * records):
            self.assign(set(PARTITIONS))
            if self.alive(lambda: self.worker.settle(seconds=600)):
                break
        self.answers_are_right()
        self.nothing_unresolved_is_committed()
        for where, values in self.broker.inputs.items():
            assert self.broker.committed.get(where, 0) == len(values), "a partition stands still"


class ExactlyOnce(Delivery):
    guarantee = "exactly_once"
    faults = ("send_offsets_to_transaction", "commit_transaction", "abort_transaction", "init_transactions", "produce")

    @invariant()
    def every_record_is_answered_once_and_in_order(self) -> None:
        """Invariants 2 and 4, and what a reader sees is what is committed, no more and no less."""
        seen: dict[Partition, list[int]] = defaultdict(list)
        for output in self.broker.visible:
            where, offset = answered(output)
            seen[where].append(offset)
        for where, values in self.broker.inputs.items():
            behind = self.broker.committed.get(where, 0)
            assert seen[where] == [offset for offset in range(behind) if values[offset] is not None]


class AtLeastOnce(Delivery):
    guarantee = "at_least_once"
    faults = ("commit",)

    @invariant()
    def first_results_are_in_order(self) -> None:
        """Invariant 4: a record may be answered again, but nothing overtakes."""
        furthest: dict[Partition, int] = {}
        seen: set[tuple[Partition, int]] = set()
        for output in self.broker.visible:
            where, offset = answered(output)
            if output.topic == OUTPUT and (where, offset) not in seen:
                seen.add((where, offset))
                assert offset > furthest.get(where, -1), "a result was overtaken"
                furthest[where] = offset


def elsewhere(where: Partition, offset: int, value: bytes) -> Output:
    """The answer another worker gives."""
    if value in WANTED:
        headers = (
            ("xnli.dlq.reason", WANTED[value].encode()),
            ("xnli.dlq.topic", where.topic.encode()),
            ("xnli.dlq.partition", b"%d" % where.number),
            ("xnli.dlq.offset", b"%d" % offset),
        )
        return Output(OutputKind.DEAD_LETTER, DEAD_LETTERS, None, None, headers)
    return Output(OutputKind.RESULT, OUTPUT, None, name(Position(where, offset, 0)).encode(), ())


@pytest.mark.parametrize("machine", [ExactlyOnce, AtLeastOnce])
def test_delivery(machine: type[Delivery]) -> None:
    with structlog.testing.capture_logs():  # a storm of faults is logged as one
        run_state_machine_as_test(
            machine,
            settings=settings(
                # The same examples on every run: a suite that must be green before anything lands explores nothing new.
                derandomize=True,
                max_examples=40,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
