"""Calls over HTTP beside the stream: they share forwards, fail nobody, and stay away from records under suspicion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.brokers.memory import Clock, MemoryBroker
from tests.delivery.doubles import ANSWER, Killed, job, partition, reason, request
from tests.delivery.worker import Worker
from worker.errors import DeviceAway
from worker.http.calls import Call, CallQueue
from worker.messages import (
    Answered,
    Batch,
    BatchResult,
    Encoded,
    Failed,
    Fault,
    FaultKind,
    Headers,
    Outcome,
    Request,
    Trigger,
    Work,
)
from worker.pipeline.infer import InferenceThread
from worker.pipeline.quarantine import SUSPECT_DELAY_S
from worker.rules.crash_count import STARTS
from worker.rules.device_share import DeviceShare
from worker.rules.offset_metadata import mark_of
from worker.rules.retry import RetryPolicy

POLICY = RetryPolicy(max_attempts=3, initial_s=0.0, max_s=0.0, multiplier=1.0, jitter=0.0)
BUDGET = 40
P0 = partition(0)


class Engine:
    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.away = 0

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        self.runs.append([request.text for request, _ in requests])
        if self.away:
            self.away -= 1
            raise DeviceAway("away")
        if any(request.text.startswith("poison") for request, _ in requests):
            raise RuntimeError("the model stumbled")
        tokens = sum(encoded.tokens for _, encoded in requests)
        work = Work(len(requests), len(requests), tokens, tokens, 0, 0, 1, 0.0, budget=BUDGET)
        return [ANSWER] * len(requests), work


class Stage:
    """An inference thread that is stepped, its calls and their callers."""

    def __init__(self, share: float = 0.5) -> None:
        self.loop = asyncio.new_event_loop()
        self.engine, self.clock = Engine(), Clock()
        self.calls = CallQueue(self.loop, most_calls=1000, most_tokens=100_000)
        self.told: list[Work] = []
        self.thread = InferenceThread(
            self.engine,
            POLICY,
            self.clock,
            lambda _: None,
            lambda: None,
            self.calls,
            DeviceShare(share, 100),
            lambda work, _: self.told.append(work),
        )

    def call(self, *texts: str, tokens: int = 10) -> list[Call]:
        return self.calls.submit([(request(text), Encoded((), 1, False, tokens)) for text in texts])

    def batch(self, *texts: str, tokens: int = 10, takes_calls: bool = True, trigger: Trigger = Trigger.WAIT) -> None:
        jobs = tuple(job(offset, text, tokens=tokens) for offset, text in enumerate(texts))
        self.thread.offer(Batch(jobs, tokens * len(jobs), 0.0, trigger, takes_calls))

    def step(self) -> BatchResult | None:
        assert self.thread.step(0)
        self.loop.run_until_complete(asyncio.sleep(0))
        return self.thread.collect()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.loop.close()


def answers(calls: Sequence[Call]) -> list[Any]:
    return [call.found.result() for call in calls]


def test_calls_share_the_first_forward_and_are_answered_before_the_rest(stage: Stage) -> None:
    stage.thread._computation.budget = BUDGET
    calls = stage.call("call 1", "call 2")
    stage.batch(*(f"job {i}" for i in range(6)))  # 80 tokens with the calls: two forwards of 40
    result = stage.step()
    assert stage.engine.runs == [["call 1", "call 2", "job 0", "job 1"], ["job 2", "job 3", "job 4", "job 5"]]
    assert answers(calls) == [ANSWER, ANSWER]
    assert result is not None
    assert [found.job.record.position.offset for found in result.finished] == list(range(6))
    assert all(isinstance(found, Answered) for found in result.finished)


def test_a_batch_names_the_traces_of_the_calls_that_shared_its_forwards(stage: Stage) -> None:
    context: Headers = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),)
    untraced = stage.call("call 1")
    traced = stage.calls.submit([(request("call 2"), Encoded((), 1, False, 10))], context)
    stage.clock.advance(5)
    stage.batch("job")
    result = stage.step()
    assert result is not None
    assert result.beside == (context,)
    assert [call.computed_s for call in (*untraced, *traced)] == [(0.0, 0.0), (stage.clock(), stage.clock())]
    stage.batch("job")
    alone = stage.step()
    assert alone is not None
    assert alone.beside == ()


def test_on_an_idle_device_calls_go_at_once_and_alone(stage: Stage) -> None:
    calls = stage.call("call")
    assert stage.step() is None
    assert answers(calls) == [ANSWER]
    assert len(stage.told) == 1
    assert not stage.thread.step(0)


def test_a_call_that_fails_fails_no_job_and_no_job_a_call(stage: Stage) -> None:
    calls = stage.call("poison call", "call")
    stage.batch("job", "poison job", "another")
    result = stage.step()
    assert result is not None
    assert [isinstance(found, Failed) for found in result.finished] == [False, True, False]
    poisoned, answered = answers(calls)
    assert isinstance(poisoned, Fault)
    assert answered == ANSWER


def test_where_the_device_is_away_calls_are_told_and_jobs_wait(stage: Stage) -> None:
    stage.engine.away = 2
    calls = stage.call("call")
    stage.batch("job")
    result = stage.step()
    (told,) = answers(calls)
    assert isinstance(told, Fault)
    assert told.kind is FaultKind.TRANSIENT
    assert result is not None
    assert isinstance(result.finished[0], Answered)
    assert stage.engine.runs == [["call", "job"], ["job"], ["job"]]


def test_a_batch_that_shares_no_forward_shares_none(stage: Stage) -> None:
    calls = stage.call("call")
    stage.batch("job", takes_calls=False)
    stage.step()
    assert stage.engine.runs == [["call"], ["job"]]
    assert answers(calls) == [ANSWER]


def test_with_a_backlog_calls_get_their_share_and_no_more() -> None:
    stage = Stage(share=0.2)
    stage.call(*["call"] * 900)
    for _ in range(40):
        stage.batch(*["job"] * 10)
        stage.step()
    called = sum(text == "call" for run in stage.engine.runs for text in run)
    streamed = sum(text == "job" for run in stage.engine.runs for text in run)
    assert streamed == 400
    assert called / (called + streamed) == pytest.approx(0.2, abs=0.02)
    stage.loop.close()


def test_calls_that_had_their_share_go_on_once_the_stream_is_idle(stage: Stage) -> None:
    stage.call(*["call"] * 100)
    stage.batch("job")
    stage.step()
    while stage.thread.step(0):
        pass
    assert len(stage.calls) == 89  # a batch's worth at once, and what the job has earned them
    stage.clock.advance(1.0)
    while stage.calls:
        stage.step()
    assert sum(map(len, stage.engine.runs)) == 101


def test_behind_a_held_gate_no_call_is_computed(stage: Stage) -> None:
    calls = stage.call("call")
    stage.calls.gate.hold()
    stage.batch("suspect", takes_calls=False, trigger=Trigger.QUARANTINE)
    stage.step()
    assert stage.engine.runs == [["suspect"]]
    stage.calls.gate.open()
    stage.step()
    assert answers(calls) == [ANSWER]


def test_while_nobody_takes_results_calls_are_answered_all_the_same(stage: Stage) -> None:
    """The broker is away: the Kafka thread publishes again and again, and collects nothing."""
    for _ in range(2):
        stage.batch("job")
        assert stage.thread.step(0)
    stage.batch("job")
    stage.call("call")
    stage.thread.start()
    try:
        until(lambda: stage.calls.in_hand == 0, stage.loop)
        stage.call("another")
        until(lambda: stage.calls.in_hand == 0, stage.loop)
    finally:
        stage.thread.stop(5.0)
    assert stage.thread.depths[1] == 2


def test_a_device_that_stays_away_is_told_to_all_who_come() -> None:
    stage = Stage()
    stage.thread._policy = RetryPolicy(max_attempts=3, initial_s=30.0, max_s=30.0, multiplier=1.0, jitter=0.0)
    stage.engine.away = 1
    stage.batch("job")
    stage.thread.start()
    try:
        until(lambda: len(stage.engine.runs) == 1, stage.loop)
        (call,) = stage.call("call")
        until(call.found.done, stage.loop)
        assert isinstance(call.found.result(), Fault)
    finally:
        stage.thread.stop(5.0)
        stage.loop.close()


def until(condition: Callable[[], bool], loop: asyncio.AbstractEventLoop) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        loop.run_until_complete(asyncio.sleep(0.001))


@pytest.fixture
def calls() -> Iterator[CallQueue]:
    loop = asyncio.new_event_loop()
    yield CallQueue(loop, most_calls=100, most_tokens=100_000)
    loop.close()


def ask(calls: CallQueue, text: str) -> Call:
    (call,) = calls.submit([(request(text), Encoded((), 1, False, 10))])
    return call


def started(broker: MemoryBroker, calls: CallQueue) -> Worker:
    worker = Worker(broker, calls=calls)
    broker.assign(P0)
    return worker


def test_a_start_that_counts_shares_no_forward_with_calls(broker: MemoryBroker, calls: CallQueue) -> None:
    broker.send(P0, *[b"ok"] * 4)
    worker = started(broker, calls)
    ask(calls, "ok")
    worker.settle()
    assert sorted(worker.engine.runs) == [1, 4]
    broker.send(P0, *[b"ok"] * 200)
    worker.settle()
    assert not worker.loop.quarantine  # everything is answered that a predecessor can have had in hand
    broker.send(P0, *[b"ok"] * 4)
    ask(calls, "ok")
    worker.settle()
    assert worker.engine.runs[-1] == 5


@pytest.mark.parametrize("is_spiteful", [False, True])
def test_a_call_that_kills_again_and_again_condemns_no_record(broker: MemoryBroker, is_spiteful: bool) -> None:
    """Its client asks every new process: at once, or, to do the most harm, as soon as a record is looked at alone."""
    broker.send(P0, *[b"ok"] * 6)
    deaths = 0
    for start in range(20):
        loop = asyncio.new_event_loop()
        queue = CallQueue(loop, most_calls=100, most_tokens=100_000)
        worker = started(broker, queue)
        deadline_s = worker.clock() + 2 * SUSPECT_DELAY_S
        worker.stuck = start < STARTS  # records are in hand, and none makes progress
        try:
            while worker.clock() < deadline_s:
                is_time = queue.gate.is_held if is_spiteful else start >= STARTS
                if is_time and not queue.in_hand:
                    ask(queue, "kill")
                if queue.in_hand:
                    worker.infer()
                worker.turn()
        except Killed:
            deaths += 1
        loop.close()
    assert deaths
    assert all(reason(output) == "" for output in broker.visible)
    started(broker, CallQueue(asyncio.new_event_loop(), most_calls=1, most_tokens=1)).settle()
    assert [reason(output) for output in broker.visible] == [""] * 6


def test_a_record_is_marked_only_when_no_call_is_under_way(broker: MemoryBroker, calls: CallQueue) -> None:
    broker.send(P0, *[b"ok"] * 6)
    for _ in range(STARTS):
        worker = started(broker, calls)
        worker.stuck = True
        worker.turn(5)
    worker = started(broker, calls)
    worker.stuck = True
    assert calls.gate.begin_reading()
    for _ in range(500):
        worker.loop.step()
    assert mark_of(broker.metadata[P0]).deaths == 0
    calls.gate.end_reading()
    for _ in range(500):
        worker.loop.step()
    assert mark_of(broker.metadata[P0]).deaths == 1
    assert calls.gate.is_held
    worker.stuck = False
    worker.settle()
    assert not calls.gate.is_held
