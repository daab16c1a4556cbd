from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.doubles import ANSWER, job
from worker.core.retry import RetryPolicy
from worker.errors import DeviceAway, FatalError, OutOfDeviceMemory
from worker.inference.stage import Done, InferenceStage
from worker.messages import Answered, Batch, Encoded, Failed, FaultKind, Outcome, Request, Trigger, Work

POLICY = RetryPolicy(max_attempts=3, initial_s=0.001, max_s=0.002, multiplier=2.0, jitter=0.0)


class Engine:
    """Fails on any batch that holds a culprit, and keeps count of what it was asked to compute."""

    def __init__(self, error: Exception | None = None, away: int = 0) -> None:
        self.error = error or RuntimeError("the model stumbled")
        self.away = away
        self.runs: list[int] = []

    def run(self, requests: Sequence[tuple[Request, Encoded]]) -> tuple[list[Outcome], Work]:
        self.runs.append(len(requests))
        if self.away:
            self.away -= 1
            raise DeviceAway("the device is away")
        if any(request.text == "poison" for request, _ in requests):
            raise self.error
        count = len(requests)
        return [ANSWER] * count, Work(count, count, count, count, 0, 0, 1, 0.0)


def _answer(engine: Engine, texts: Sequence[str]) -> Done:
    stage = InferenceStage(engine, POLICY, lambda: 0.0, lambda _: None, lambda: None)
    jobs = tuple(job(offset, text) for offset, text in enumerate(texts))
    stage.offer(Batch(jobs, len(jobs), 0.0, Trigger.WAIT))
    assert stage.step(0)
    done = stage.collect()
    assert done is not None
    return done


@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_culprits_stand_alone_and_neighbours_are_answered_in_order(culprits: list[bool]) -> None:
    done = _answer(Engine(), ["poison" if culprit else "fine" for culprit in culprits])
    assert [f.job.record.position.offset for f in done.finished] == list(range(len(culprits)))
    assert [isinstance(f, Failed) for f in done.finished] == culprits
    assert done.work.rows == culprits.count(False)  # what was computed in vain is not counted as work


@given(size=st.integers(1, 256), data=st.data())
def test_one_culprit_costs_at_most_two_batches_more(size: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, size - 1))
    engine = Engine()
    done = _answer(engine, ["poison" if i == place else "fine" for i in range(size)])
    assert sum(engine.runs) <= 3 * size
    assert done.bisections <= math.ceil(math.log2(size))


def test_on_average_one_culprit_costs_a_batch_and_a_half() -> None:
    engine = Engine()
    for place in range(256):
        _answer(engine, ["poison" if i == place else "fine" for i in range(256)])
    assert sum(engine.runs) / 256 == pytest.approx(2.5 * 256, rel=0.01)


def test_an_outage_of_the_device_is_waited_for_and_counts_against_nobody() -> None:
    engine = Engine(away=3)
    done = _answer(engine, ["fine", "fine"])
    assert engine.runs == [2, 2, 2, 2]
    assert all(isinstance(f, Answered) and f.job.attempt == 1 for f in done.finished)
    assert done.bisections == 0


def test_memory_that_runs_out_for_one_alone_is_told_as_such() -> None:
    done = _answer(Engine(OutOfDeviceMemory(512, "512 tokens do not fit")), ["fine", "poison"])
    failed = done.finished[1]
    assert isinstance(failed, Failed)
    assert failed.fault.kind is FaultKind.OUT_OF_MEMORY
    assert "512 tokens" in failed.fault.message


def test_a_crash_on_the_thread_comes_up_where_results_are_collected() -> None:
    stage = InferenceStage(Engine(FatalError("the device is gone")), POLICY, lambda: 0.0, lambda _: None, lambda: None)
    stage.offer(Batch((job(0, "poison"),), 1, 0.0, Trigger.WAIT))
    stage.start()
    assert stage._thread is not None
    stage._thread.join(10)
    with pytest.raises(FatalError, match="the device is gone"):
        stage.collect()
