"""The end of a worker: drain, close, crash."""

from __future__ import annotations

import pytest

from tests.brokers.memory import MemoryBroker, retriable
from tests.delivery.doubles import (
    DEAD_LETTERS,
    OUTPUT,
)
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, started
from tests.delivery.worker import Guarantee
from worker.rules.crash_count import Mark
from worker.rules.offset_metadata import render


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
