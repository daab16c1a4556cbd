"""Requests that name a label set which is not there: through the whole worker, on one thread and one clock."""

from __future__ import annotations

from tests.brokers.memory import MemoryBroker
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, reasons, started
from tests.delivery.worker import Guarantee, Worker
from worker.pipeline.set_wait import IN_VAIN_S
from worker.rules.dead_letter import PREFIX

WAIT_S = 5.0


def waiting(broker: MemoryBroker, guarantee: Guarantee = "exactly_once") -> Worker:
    """A worker that has read everything, and of whose requests one waits for a set."""
    worker = started(broker, guarantee, wait_s=WAIT_S)
    broker.send(P0, b"ok", b"set later", b"ok")
    broker.send(P1, b"ok", b"ok")
    pass_time(worker, 1.0)
    assert offsets(broker) == [0], "what follows in its partition waits, so that order holds"
    assert offsets(broker, P1) == [0, 1], "and nothing else does"
    assert worker.counted("label_set_waits_total") == 1
    return worker


def pass_time(worker: Worker, seconds: float) -> None:
    deadline_s = worker.clock() + seconds
    while worker.clock() < deadline_s:
        worker.turn()


@BOTH
def test_a_set_that_arrives_releases_what_waits_for_it(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = waiting(broker, guarantee)
    worker.codec.sets.put("other", 1)
    pass_time(worker, 1.0)
    assert offsets(broker) == [0]
    worker.codec.sets.put("later", 1)
    began_s = worker.clock()
    worker.settle()
    assert offsets(broker) == [0, 1, 2]
    assert reasons(broker) == {}
    assert worker.clock() - began_s < 1.0
    assert worker.counted("records_retried_total") == 0


@BOTH
def test_in_vain_it_is_a_dead_letter_that_names_the_set_and_the_time(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    worker = waiting(broker, guarantee)
    began_s = worker.clock()
    worker.settle()
    assert worker.clock() - began_s < WAIT_S + 1.0
    assert offsets(broker) == [0, 1, 2]
    assert reasons(broker) == {1: "invalid"}
    letter = next(output for output in broker.visible if dict(output.headers).get(f"{PREFIX}reason"))
    said = (dict(letter.headers)[f"{PREFIX}message"] or b"").decode()
    assert said.startswith("label_set = 'later': there is no set of this name; waited 5.")
    assert said.endswith(" s for it (label_sets.wait_s)")


def test_what_was_waited_for_in_vain_is_not_waited_for_again_at_once(broker: MemoryBroker) -> None:
    worker = waiting(broker)
    worker.settle()
    broker.send(P0, b"set later", b"set other")
    pass_time(worker, 1.0)
    assert reasons(broker) == {1: "invalid", 3: "invalid"}, "the fourth does not wait, and other names do"
    said = (dict(broker.visible[-1].headers)[f"{PREFIX}message"] or b"").decode()
    assert "it was waited for in vain (label_sets.wait_s) until " in said
    worker.codec.sets.put("other", 1)
    worker.codec.sets.put("later", 1)
    worker.settle()
    worker.codec.sets.put("later", None)  # deleted, it may come back
    broker.send(P0, b"set later")
    pass_time(worker, 1.0)
    assert offsets(broker) == [0, 1, 2, 3, 4]
    worker.settle()
    pass_time(worker, IN_VAIN_S)
    broker.send(P0, b"set later")
    pass_time(worker, 1.0)
    assert set(reasons(broker)) == {1, 3, 5}
    worker.codec.sets.put("later", 2)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4, 5, 6]
    assert set(reasons(broker)) == {1, 3, 5}


def test_a_set_that_was_deleted_is_unknown_to_what_waits(broker: MemoryBroker) -> None:
    worker = started(broker, wait_s=WAIT_S)
    worker.codec.sets.put("gone", 1)
    broker.send(P0, b"set gone")
    worker.settle()
    worker.codec.sets.put("gone", None)
    worker.turn()
    broker.send(P0, b"set gone")
    pass_time(worker, 1.0)
    worker.codec.sets.put("gone", 2)  # and away again before anybody looks
    worker.codec.sets.put("gone", None)
    worker.settle()
    assert reasons(broker) == {1: "invalid"}


def test_a_clock_that_is_set_changes_nothing(broker: MemoryBroker) -> None:
    worker = waiting(broker)
    worker.wall_ahead_s = 3_600.0
    pass_time(worker, 1.0)
    assert offsets(broker) == [0]
    worker.codec.sets.put("later", 1)
    worker.settle()
    assert reasons(broker) == {}


def test_what_waits_is_forgotten_with_its_partition(broker: MemoryBroker) -> None:
    worker = waiting(broker)
    broker.revoke(P0)
    worker.settle(WAIT_S * 3)
    assert offsets(broker) == [0]
    assert committed(broker)[P0] == 1


def test_without_a_wait_and_without_sets_it_is_invalid_at_once(broker: MemoryBroker) -> None:
    worker = started(broker, wait_s=0.0)
    broker.send(P0, b"set later")
    pass_time(worker, 1.0)
    assert reasons(broker) == {0: "invalid"}
    none = started(MemoryBroker(broker.clock))
    none.broker.send(P0, b"set later")
    pass_time(none, 1.0)
    assert reasons(none.broker) == {0: "invalid"}


def test_a_drain_sees_sets_arrive(broker: MemoryBroker) -> None:
    worker = waiting(broker)
    worker.codec.sets.put("later", 1)
    assert worker.loop.drain(20.0)
    assert offsets(broker) == [0, 1, 2]
    assert reasons(broker) == {}


@BOTH
def test_a_batch_sees_one_version_of_a_set(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee, wait_s=WAIT_S)
    worker.codec.sets.put("a", 1)
    worker.codec.sets.put("b", 1)
    worker.stuck = True  # so that batches wait, and newcomers would join them
    for version in range(2, 8):
        broker.send(P0, b"set a", b"set b", b"set a")
        worker.turn(3)
        worker.codec.sets.put("a", version)
        worker.turn(3)
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == list(range(18))
    seen = worker.engine.label_sets
    assert all(len({found.version for found in batch if found.name == "a"}) <= 1 for batch in seen)
    versions = [int(found.version) for batch in seen for found in batch if found.name == "a"]
    assert len(versions) == 12
    assert versions == sorted(versions)
    assert len(set(versions)) >= 3
    assert worker.counted("batches_total", trigger="label_set") >= 1


def test_a_job_keeps_its_version_over_attempts_in_place(broker: MemoryBroker) -> None:
    worker = started(broker, wait_s=WAIT_S)
    worker.codec.sets.put("a", 1)
    worker.engine.failures_before["set a"] = 1
    broker.send(P0, b"set a")
    pass_time(worker, 0.1)
    worker.codec.sets.put("a", 2)
    worker.settle()
    assert {found.version for batch in worker.engine.label_sets for found in batch} == {"1"}
    assert offsets(broker) == [0]
