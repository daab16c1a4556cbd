"""Calls: requests that came over HTTP, on their way to the inference thread and back.

A call is a job without a position. It goes through the forwards of the stream's jobs and ends in its caller instead of
the ledger. Two threads meet here, and each attribute has one that writes it: the HTTP thread submits and withdraws, the
inference thread takes and answers. What they share is a deque whose single operations are atomic.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from worker.errors import Reason
from worker.messages import Encoded, Fault, FaultKind, Headers, Outcome, Request


@dataclass(slots=True, eq=False)
class Call:
    """A request and its tokens, and where its outcome, or why there is none, is waited for.

    ``headers`` hold the context of its trace, if it has one, and ``computed_s`` the monotonic times between which the
    model had it: the inference thread writes them before it answers.
    """

    request: Request
    encoded: Encoded
    found: asyncio.Future[Outcome | Fault]
    headers: Headers = ()
    computed_s: tuple[float, float] = (0.0, 0.0)


class QueueFull(Exception):  # noqa: N818 (an answer to the caller, no failure of ours)
    """More waits for the device than may."""


class Gate:
    """Keeps calls away from model and tokenizer while a record is marked, so that a call's crash is laid to no record.

    The Kafka thread holds and opens. The inference thread (`computing`) and the HTTP thread (`reading`) each say what
    they are about to do, and look whether that is allowed only then. So whoever holds and then finds it quiet knows
    that nothing begins until it is opened.
    """

    def __init__(self) -> None:
        self.is_held = False
        self.computing = False
        self.reading = 0

    def hold(self) -> None:
        """No call begins from now on; those under way go on."""
        self.is_held = True

    def open(self) -> None:
        """Calls may begin."""
        self.is_held = False

    @property
    def is_quiet(self) -> bool:
        """True if no call is under way. Ask after `hold`."""
        return not (self.computing or self.reading)

    def begin_reading(self) -> bool:
        """HTTP thread: True if a call may be tokenised now; then `end_reading` is to be called after."""
        self.reading += 1
        if self.is_held:
            self.reading -= 1
            return False
        return True

    def end_reading(self) -> None:
        """HTTP thread: it is tokenised."""
        self.reading -= 1

    def begin_computing(self) -> bool:
        """Inference thread: True if calls may be computed now; `computing` is to be taken back after."""
        self.computing = True
        self.computing = not self.is_held
        return self.computing


class CallQueue:
    """Calls that wait for the device.

    Args:
        loop: of the HTTP thread.
        most_calls: How many may wait.
        most_tokens: How many tokens they may have together. What is more than that alone may wait if nothing else does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, most_calls: int, most_tokens: int) -> None:
        self._loop = loop
        self._most_calls = most_calls
        self._most_tokens = most_tokens
        self._waiting: deque[Call] = deque()
        self._added_tokens = 0  # less those of calls that were withdrawn: the HTTP thread's count
        self._taken_tokens = 0  # the inference thread's
        self._in_hand: set[Call] = set()  # submitted and not answered, for the end: the HTTP thread's
        self.gate = Gate()
        # Rung for whatever comes, a batch of the stream too: what waits for either waits for this.
        self.bell = threading.Event()

    # The HTTP thread's side -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def in_hand(self) -> int:
        """Calls that wait or are computed."""
        return len(self._in_hand)

    def require_room(self, calls: int, tokens: int = 0) -> None:
        """Raise QueueFull if so many more may not wait."""
        waiting = len(self._waiting)
        held = self._added_tokens - self._taken_tokens
        if waiting + calls > self._most_calls or (waiting and held + tokens > self._most_tokens):
            raise QueueFull

    def submit(self, requests: Sequence[tuple[Request, Encoded]], headers: Headers = ()) -> list[Call]:
        """Let requests wait for the device, all of them or none. ``headers`` are those of their trace.

        Raises:
            QueueFull: too much waits.
        """
        tokens = sum(encoded.tokens for _, encoded in requests)
        self.require_room(len(requests), tokens)
        calls = [Call(request, encoded, self._loop.create_future(), headers) for request, encoded in requests]
        self._added_tokens += tokens
        self._in_hand.update(calls)
        self._waiting.extend(calls)
        self.bell.set()
        return calls

    def withdraw(self, calls: Sequence[Call]) -> None:
        """Nobody waits for these any more: those that are not begun give their place back."""
        for call in calls:
            self._in_hand.discard(call)
            call.found.cancel()
            with suppress(ValueError):  # it is taken already
                self._waiting.remove(call)
                self._added_tokens -= call.encoded.tokens

    def close(self) -> None:
        """The device computes no more: whoever still waits is told so."""
        gone = Fault(FaultKind.TRANSIENT, Reason.EXHAUSTED, "inference", "Stopped", "the worker is ending")
        self._settle([(call, gone) for call in self._in_hand.copy()])

    def _settle(self, found: Sequence[tuple[Call, Outcome | Fault]]) -> None:
        for call, outcome in found:
            self._in_hand.discard(call)
            if not call.found.done():
                call.found.set_result(outcome)

    # The inference thread's side --------------------------------------------------------------------------------------

    def take(self, tokens: int) -> list[Call]:
        """The calls that have waited longest, as many as so many tokens hold and at least one; none for 0 tokens.

        What is taken is under way until `answer`: see `Gate`.
        """
        if tokens <= 0 or not self._waiting or not self.gate.begin_computing():
            return []
        taken: list[Call] = []
        left = tokens
        # (Only this thread takes from the front, so what is looked at there can at most be withdrawn meanwhile.)
        while self._waiting and (not taken or self._cost_of_first() <= left):
            with suppress(IndexError):
                call = self._waiting.popleft()
                taken.append(call)
                left -= call.encoded.tokens
                self._taken_tokens += call.encoded.tokens
        if not taken:
            self.gate.computing = False
        return taken

    def _cost_of_first(self) -> float:
        try:
            return self._waiting[0].encoded.tokens
        except IndexError:
            return float("inf")

    def answer(self, calls: Sequence[Call], found: Sequence[Outcome | Fault]) -> None:
        """Give each caller what was found; the calls are under way no more."""
        self.gate.computing = False
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, list(zip(calls, found, strict=True)))
