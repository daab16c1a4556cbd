"""The start of a worker: what may take minutes, says what it does, and ends when it is asked to or when it hangs."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

import structlog

from worker import process
from worker.errors import Stalled
from worker.inference.stage import Tell

log = structlog.get_logger("worker")

# How soon a stop is seen, and how often a stage that takes long is told of again.
POLL_S: Final = 0.1
REPEAT_S: Final = 15.0

_T = TypeVar("_T")


class Stopped(Exception):  # noqa: N818 (asked for, no error)
    """The process was asked to stop while it waited for something at the start."""


class Start:
    """Waits, for as long as nobody asks the process to stop. Both methods raise `Stopped` then."""

    def __init__(self, stop_requested: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._stop_requested = stop_requested
        self._clock = clock
        self._checks: list[Callable[[], None]] = []

    def watch(self, check: Callable[[], None]) -> None:
        """Call ``check`` as long as something is waited for; what it raises ends the waiting."""
        self._checks.append(check)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        deadline_s = self._clock() + seconds
        while (left_s := deadline_s - self._clock()) > 0:
            self._check()
            time.sleep(min(left_s, POLL_S))

    def run(self, work: Callable[[Tell], _T]) -> _T:
        """What ``work`` returns or raises, run on a thread of its own: a socket or a disk that hangs holds nobody up.

        A thread cannot be ended from outside. One that is left behind does no harm, since the process is about to end,
        and `worker.process.end` does that without it.

        Raises:
            Stalled: ``work`` has told of no progress for longer than it said it might take.
        """
        begun = Begun(work, self._clock)
        while not begun.is_done:
            concurrent.futures.wait([begun.future], POLL_S)
            self._check()
            begun.check()
        self._check()  # what the work raised may be of the stop: it waits here too
        return begun.future.result()

    def _check(self) -> None:
        if self._stop_requested():
            raise Stopped
        for check in self._checks:
            check()


class Begun(Generic[_T]):
    """Work that has begun on a thread of its own.

    Args:
        work: What is done. It tells how far it is.
        clock: Monotonic seconds.
        event: What lines of the log about its stages are called.
    """

    def __init__(self, work: Callable[[Tell], _T], clock: Callable[[], float], event: str = "starting") -> None:
        self.future: Future[_T] = Future()
        self._stage = _Stage(clock, event)

        def target() -> None:
            try:
                self.future.set_result(work(self._stage.tell))
            except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised where the result is asked for)
                self.future.set_exception(error)

        threading.Thread(target=target, name=process.START_THREAD, daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether it has returned or raised."""
        return self.future.done()

    def check(self) -> None:
        """Say now and then how far it is. Raises Stalled if it told of no progress for longer than it said."""
        self._stage.check()


class _Stage:
    """The stage under way: written by the thread that works, read by the one that waits, each value replaced whole."""

    def __init__(self, clock: Callable[[], float], event: str) -> None:
        self._clock = clock
        self._event = event
        self._doing = ""
        self._began_s = self._repeated_s = clock()
        self._latest: tuple[float, float, str] | None = None  # when told, for how long, how far

    def tell(self, doing: str, limit_s: float, done: str = "") -> None:
        now_s = self._clock()
        if doing != self._doing:
            self._doing, self._began_s, self._repeated_s = doing, now_s, now_s
            log.info(self._event, doing=doing)
        self._latest = now_s, limit_s, done

    def check(self) -> None:
        if self._latest is None:
            return
        now_s, (told_s, limit_s, done) = self._clock(), self._latest
        if now_s - told_s > limit_s:
            raise Stalled(
                f"{self._doing}: no progress for {limit_s:g} s{f' after {done}' if done else ''}; see whether the "
                "network, the hub or the disk that it is read from answers"
            )
        if now_s - self._repeated_s > REPEAT_S:
            self._repeated_s = now_s
            log.info(self._event, doing=self._doing, seconds=round(now_s - self._began_s), done=done or None)
