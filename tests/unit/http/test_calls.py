"""The queue of calls and the gate, without threads: every interleaving is a sequence of steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests import builders
from worker.http.calls import CallQueue, QueueFull
from worker.messages import Classification, Encoded, Fault, Request

ANSWER = Classification((), multi_label=False, abstained=False)


def encoded(tokens: int = 10) -> tuple[Request, Encoded]:
    return builders.request(), Encoded((), 1, truncated=False, tokens=tokens)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.close()


@pytest.fixture
def queue(loop: asyncio.AbstractEventLoop) -> CallQueue:
    return CallQueue(loop, most_calls=3, most_tokens=100)


def settle(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))


def test_calls_are_taken_in_order_as_far_as_the_tokens_go_and_one_at_least(queue: CallQueue) -> None:
    first, second, third = queue.submit([encoded(30), encoded(30), encoded(30)])
    assert queue.take(0) == []
    assert queue.take(1) == [first]
    queue.answer([first], [ANSWER])
    assert queue.take(65) == [second, third]
    queue.answer([second, third], [ANSWER, ANSWER])
    assert queue.take(65) == []
    assert not queue.gate.computing


def test_all_of_a_request_wait_or_none(queue: CallQueue) -> None:
    queue.submit([encoded(), encoded()])
    with pytest.raises(QueueFull):
        queue.submit([encoded(), encoded()])
    assert len(queue) == 2
    queue.take(100)
    queue.submit([encoded(), encoded()])


def test_tokens_are_bounded_and_what_is_larger_alone_waits_alone(queue: CallQueue) -> None:
    queue.submit([encoded(1000)])
    with pytest.raises(QueueFull):
        queue.submit([encoded(1)])
    queue.take(1)
    queue.submit([encoded(60)])
    with pytest.raises(QueueFull):
        queue.submit([encoded(60)])


def test_what_is_withdrawn_is_not_computed_and_gives_its_place_back(queue: CallQueue) -> None:
    first, second = queue.submit([encoded(90), encoded(10)])
    queue.withdraw([first])
    queue.submit([encoded(90)])
    assert queue.take(1) == [second]
    queue.withdraw([second])  # it is being computed: nobody waits for it any more
    queue.answer([second], [ANSWER])
    assert queue.in_hand == 1


def test_answers_reach_their_callers(queue: CallQueue, loop: asyncio.AbstractEventLoop) -> None:
    calls = queue.submit([encoded(), encoded()])
    queue.answer(queue.take(100), [ANSWER, ANSWER])
    settle(loop)
    assert [call.found.result() for call in calls] == [ANSWER, ANSWER]
    assert queue.in_hand == 0


def test_the_end_is_told_to_all_that_wait(queue: CallQueue, loop: asyncio.AbstractEventLoop) -> None:
    waiting, computing = queue.submit([encoded(), encoded()])
    assert queue.take(1) == [waiting]
    queue.close()
    assert all(isinstance(call.found.result(), Fault) for call in (waiting, computing))
    queue.answer([waiting], [ANSWER])  # too late, and no error
    settle(loop)


def test_whatever_rings_the_bell_wakes_the_device(queue: CallQueue) -> None:
    assert not queue.bell.is_set()
    queue.submit([encoded()])
    assert queue.bell.is_set()


def test_behind_a_closed_gate_nothing_begins_and_it_is_quiet_once_all_has_ended(queue: CallQueue) -> None:
    gate = queue.gate

    def is_quiet() -> bool:
        return gate.is_quiet

    first, second = queue.submit([encoded(), encoded()])
    assert gate.begin_reading()
    assert queue.take(1) == [first]
    gate.hold()
    assert not is_quiet()
    assert not gate.begin_reading()
    gate.end_reading()
    assert not is_quiet()  # one is still computed
    queue.answer([first], [ANSWER])
    assert is_quiet()
    assert queue.take(1) == []
    assert is_quiet()
    gate.open()
    assert queue.take(1) == [second]
