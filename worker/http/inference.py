"""A request for inference, from its body to its answer: bounded at each step, given up where nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from worker.http.asked import Answered, Asked, Read, Rules
from worker.http.body import Bodies, Held, parsed
from worker.http.calls import Call, CallQueue, Gate, QueueFull
from worker.http.problem import Kind, Problem, of_fault
from worker.messages import Fault, Outcome

if TYPE_CHECKING:
    from worker.telemetry.call_traces import CallSpan

log = structlog.stdlib.get_logger(__name__)

_GATE_POLL_S: Final = 0.01
_SENT_BYTES: Final = 1 << 18

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Service:
    """What answers requests, from when the model is loaded. ``label_sets`` are the names that they may name."""

    queue: CallQueue
    rules: Rules
    label_sets: Iterable[str] = ()


class Inference:
    """Answers requests for inference. HTTP thread only, but for `open`, `drain` and `end`.

    Args:
        is_on: Whether the operator wants it.
        bodies: Reads bodies.
        most: Requests in hand at a time; their connections are as many.
        timeout_s: Longest wait for an answer.
    """

    def __init__(self, *, is_on: bool, bodies: Bodies, most: int, timeout_s: float) -> None:
        self._is_on = is_on
        self._bodies = bodies
        self._most = most
        self._timeout_s = timeout_s
        self._service: Service | None = None
        self._is_draining = False
        self._is_closed = False
        self._in_hand = 0
        # Tokenising takes up to a second for the largest body, and lets go of the interpreter: probes are answered
        # meanwhile.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="http-read")

    def open(self, service: Service) -> None:
        """The model is loaded: requests are answered from now on."""
        self._service = service

    def drain(self) -> None:
        """Requests in hand are answered; from now on others are not."""
        self._is_draining = True

    @property
    def in_hand(self) -> int:
        """Requests whose answer is not sent yet."""
        return self._in_hand

    @property
    def waiting(self) -> int:
        """Texts that wait for the device."""
        return len(self._service.queue) if self._service is not None else 0

    @property
    def label_sets(self) -> list[str]:
        """Names of the sets that a request may name."""
        return list(self._service.label_sets) if self._service is not None else []

    def close(self) -> None:
        """Nothing is computed any more: whoever waits is told so."""
        self._is_closed = True
        if self._service is not None:
            self._service.queue.close()

    def end(self) -> None:
        """Nothing is read any more: the server has ended. Any thread."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def require(self) -> Service:
        """What answers. Raises Problem while nothing does."""
        if not self._is_on:
            raise Problem(Kind.NOT_FOUND, "inference over HTTP is off; set http.inference = true")
        if self._is_draining:
            raise Problem(Kind.UNAVAILABLE, "the worker is ending; ask another", headers={"Connection": "close"})
        if self._service is None:
            raise Problem(Kind.UNAVAILABLE, "the model is not loaded yet")
        return self._service

    async def answer(self, request: Request, read: Read, send: Send, span: CallSpan | None = None) -> int:
        """Answer one request. Returns the status. ``span`` is told of the steps.

        Raises:
            Problem: it cannot be answered, and why. Nothing is sent yet.
            ClientDisconnect: nobody waits for it any more.
        """
        service = self.require()
        with self._working(), self._bodies.holding() as held:
            try:
                service.queue.require_room(1)
                content = await self._content(request, read, service, held, span)
            except QueueFull:
                raise Problem(
                    Kind.BUSY, f"{len(service.queue)} texts wait for the device already; try again, or ask another"
                ) from None
            await _send(content, send)
        return 200

    @contextmanager
    def _working(self) -> Iterator[None]:
        if self._in_hand >= self._most:
            raise Problem(Kind.BUSY, f"{self._in_hand} requests are in hand already", headers={"Connection": "close"})
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def _content(
        self, request: Request, read: Read, service: Service, held: Held, span: CallSpan | None
    ) -> bytes:
        body = await self._bodies.read(request, held)

        def reading() -> Asked:
            return read(parsed(body), service.rules)

        asked = await self._read(reading if span is None else span.reading(reading), service.queue.gate)
        if self._is_closed:
            raise Problem(Kind.UNAVAILABLE, "the worker is ending; ask another", headers={"Connection": "close"})
        calls = service.queue.submit(asked.requests, () if span is None else span.headers)
        try:
            outcomes = await self._outcomes(calls, request)
        except BaseException:
            service.queue.withdraw(calls)
            raise
        if span is not None:
            span.computed([call.computed_s for call in calls], sum(call.encoded.tokens for call in calls))
        answers = _matched(calls, outcomes)
        content = await self._in_thread(lambda: _json(asked, answers))
        held.add(len(content))
        return content

    async def _read(self, read: Callable[[], _T], gate: Gate) -> _T:
        """The result of reading, done where no marked record can be blamed for it."""
        deadline_s = time.monotonic() + self._timeout_s
        while not gate.begin_reading():
            if time.monotonic() > deadline_s:
                raise Problem(Kind.UNAVAILABLE, "the worker looks at a record that may have killed it")
            await asyncio.sleep(_GATE_POLL_S)
        loop = asyncio.get_running_loop()
        return await self._in_thread(read, lambda _: loop.call_soon_threadsafe(gate.end_reading))

    async def _in_thread(self, work: Callable[[], _T], then: Callable[[Future[_T]], object] | None = None) -> _T:
        future = self._reader.submit(work)
        if then is not None:
            future.add_done_callback(then)  # of the thread's own future: ours ends sooner where the client goes away
        return await asyncio.wrap_future(future)

    async def _outcomes(self, calls: Sequence[Call], request: Request) -> list[Outcome | Fault]:
        all_found = asyncio.gather(*(call.found for call in calls))
        gone = asyncio.ensure_future(_until_gone(request))
        first: set[asyncio.Future[Any]] = {all_found, gone}
        try:
            done, _ = await asyncio.wait(first, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not all_found.done():
                all_found.cancel()
        if all_found in done:
            return list(all_found.result())
        if gone in done:
            raise ClientDisconnect
        raise Problem(Kind.UNAVAILABLE, f"no answer within {self._timeout_s:g} s (http.timeout_s): the device is busy")


async def _send(content: bytes, send: Send) -> None:
    """Send an answer, no faster than it is read: until then it counts as held."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(content), _SENT_BYTES):
        part = content[start : start + _SENT_BYTES]
        is_last = start + _SENT_BYTES >= len(content)
        await send({"type": "http.response.body", "body": part, "more_body": not is_last})


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _matched(calls: Sequence[Call], found: Sequence[Outcome | Fault]) -> list[Answered]:
    answers = []
    for number, (call, outcome) in enumerate(zip(calls, found, strict=True)):
        if isinstance(outcome, Fault):
            problem = of_fault(outcome)
            if problem.kind is Kind.FAILED:
                log.error("call_failed", error=outcome.error, message=outcome.message, stacktrace=outcome.stacktrace)
            if len(calls) > 1:
                problem.more["item"] = number
            raise problem
        answers.append(Answered(call.request, call.encoded, outcome))
    return answers


def _json(asked: Asked, answers: Sequence[Answered]) -> bytes:
    value: Any = asked.answer(answers)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
