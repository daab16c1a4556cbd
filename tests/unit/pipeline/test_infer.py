from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.brokers.memory import Clock
from tests.delivery.doubles import ANSWER, job
from worker.errors import DeviceAway, FatalError, OutOfDeviceMemory
from worker.http.health import Health
from worker.messages import Answered, Batch, BatchResult, Encoded, Failed, FaultKind, Outcome, Request, Trigger, Work
from worker.pipeline.infer import InferenceThread
from worker.rules.retry import RetryPolicy

POLICY = RetryPolicy(max_attempts=3, initial_s=0.001, max_s=0.002, multiplier=2.0, jitter=0.0)


class Engine:
    """Fails on any batch that holds a culprit, and keeps count of what it was asked to compute."""

    def __init__(self, error: Exception | None = None, away: int = 0) -> None:
        self.error = error or RuntimeError("the model stumbled")
        self.away = away
        self.runs: list[int] = []
        self.texts: list[str] = []

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        beat()
        self.runs.append(len(requests))
        self.texts += [request.text for request, _ in requests]
        if self.away:
            self.away -= 1
            raise DeviceAway("the device is away")
        if any(request.text.startswith("poison") for request, _ in requests):
            raise self.error
        count = len(requests)
        return [ANSWER] * count, Work(count, count, count, count, 0, 0, 1, 0.0, budget=7)


def _answer(engine: Engine, texts: Sequence[str]) -> BatchResult:
    return _step(_stage(engine), texts)


def _stage(engine: Engine) -> InferenceThread:
    return InferenceThread(engine, POLICY, lambda: 0.0, lambda _: None, lambda: None)


def _step(stage: InferenceThread, texts: Sequence[str]) -> BatchResult:
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
def test_one_culprit_costs_at_most_half_a_batch_more_than_the_pass_that_failed(size: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, size - 1))
    engine = Engine()
    done = _answer(engine, ["poison" if i == place else "fine" for i in range(size)])
    assert sum(engine.runs) <= 2 * size + size / 2
    assert done.splits <= math.ceil(math.log(size, 4))


def test_in_a_batch_of_256_one_culprit_costs_at_most_a_batch_and_a_third_wherever_it_stands() -> None:
    extra: list[int] = []
    for place in range(256):
        engine = Engine()
        _answer(engine, ["poison" if i == place else "fine" for i in range(256)])
        extra.append(sum(engine.runs) - 256)
        assert len(engine.runs) <= 17  # halves would need as many
    assert max(extra) == 256 + 64 + 16 + 4
    assert sum(extra) / 256 == pytest.approx(1.25 * 256, rel=0.01)


@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_a_neighbour_is_computed_again_at_most_once_for_each_split(culprits: list[bool]) -> None:
    engine = Engine()
    _answer(engine, [f"{'poison' if culprit else 'fine'} {i}" for i, culprit in enumerate(culprits)])
    times = Counter(engine.texts)
    assert max(times.values()) <= 1 + math.ceil(math.log(len(culprits), 4))


def test_a_batch_without_a_success_tells_the_budget_told_before() -> None:
    engine = Engine()
    stage = _stage(engine)
    for text, budget in (("poison", 0), ("fine", 7), ("poison", 7)):
        assert _step(stage, [text]).work.budget == budget


def test_an_outage_of_the_device_is_waited_for_and_counts_against_nobody() -> None:
    engine = Engine(away=3)
    done = _answer(engine, ["fine", "fine"])
    assert engine.runs == [2, 2, 2, 2]
    assert all(isinstance(f, Answered) and f.job.record.attempt == 1 for f in done.finished)
    assert done.splits == 0


def test_a_device_that_is_away_for_longer_than_a_batch_may_take_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, health = Clock(), Health(loop_limit_s=60, inference_limit_s=300)
    patient = RetryPolicy(max_attempts=3, initial_s=900.0, max_s=900.0, multiplier=1.0, jitter=0.0)
    stage = InferenceThread(Engine(away=2), patient, clock, health.inference_beat, health.inference_idle)

    def wait(seconds: float) -> bool:
        clock.advance(seconds)
        assert health.healthy(clock()).problems == ()
        return False

    monkeypatch.setattr(stage._stopping, "wait", wait)
    began_s = clock()
    done = _step(stage, ["fine"])
    assert all(isinstance(f, Answered) for f in done.finished)
    assert clock() - began_s == pytest.approx(2 * 900)


def test_a_batch_of_many_forwards_is_slow_and_not_hung() -> None:
    clock, limit_s = Clock(), 10.0
    health = Health(loop_limit_s=60, inference_limit_s=limit_s)

    class Slow(Engine):
        def run(
            self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]
        ) -> tuple[list[Outcome], Work]:
            for _ in range(5):
                beat()
                clock.advance(0.9 * limit_s)
                assert health.healthy(clock()).ok
            clock.advance(0.2 * limit_s)
            assert not health.healthy(clock()).ok, "the last one takes too long"
            return super().run(requests, beat)

    stage = InferenceThread(Slow(), POLICY, clock, health.inference_beat, health.inference_idle)
    assert _step(stage, ["fine"]).work.computed == 1
    assert health.healthy(clock()).ok


def test_memory_that_runs_out_for_one_alone_is_told_as_such() -> None:
    done = _answer(Engine(OutOfDeviceMemory(512, "512 tokens do not fit")), ["fine", "poison"])
    failed = done.finished[1]
    assert isinstance(failed, Failed)
    assert failed.fault.kind is FaultKind.OUT_OF_MEMORY
    assert "512 tokens" in failed.fault.message


def test_a_crash_on_the_thread_comes_up_where_results_are_collected() -> None:
    stage = _stage(Engine(FatalError("the device is gone")))
    stage.offer(Batch((job(0, "poison"),), 1, 0.0, Trigger.WAIT))
    stage.start()
    assert stage._thread is not None
    stage._thread.join(10)
    with pytest.raises(FatalError, match="the device is gone"):
        stage.collect()
