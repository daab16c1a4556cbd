"""What concerns the process as a whole: signals, Python's search for cycles, memory that was freed, and the end."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

# Threads that may be in the middle of something when the process ends; see `end`.
INFERENCE_THREAD: Final = "inference"
START_THREAD: Final = "start"

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
# How the hub's client calls a file that it has begun to download.
_INCOMPLETE: Final = ".incomplete"
_CHILDREN: Final[list[subprocess.Popen[bytes]]] = []

# Young objects that begin a search, and searches of each generation that begin one of the next.
THRESHOLDS: Final = (20_000, 50, 100)
TRIM_INTERVAL_S: Final = 30.0
# The Kafka thread has one, and all others share the rest.
ARENAS: Final = 4
_M_ARENA_MAX: Final = -8  # malloc.h


class StopFlag:
    """True once SIGTERM or SIGINT has arrived. The second signal ends the process at once with code 1.

    Python runs its handlers on the main thread alone, and only between two of its instructions: while that waits inside
    a library of C for a broker or a disk, nothing is heard. So a thread of ours reads the numbers of the signals, which
    the interpreter writes to a socket as they arrive. Make one on the main thread.

    Args:
        doing: what the first Ctrl-C begins ("draining"): the person at the terminal is told so. Empty: only the line of
            ^C is ended.
        interrupt: raise KeyboardInterrupt on the main thread as well, for commands that look at no flag: what they have
            begun is undone as after Ctrl-C.
        hears_hang_up: hear SIGHUP too. It asks for a stop, until `reload_on_hang_up` gives it another meaning. It never
            counts as the second signal, for a terminal that goes away may send two. Where it was ignored from the
            beginning, as under nohup, it stays ignored.
    """

    def __init__(self, doing: str = "", *, interrupt: bool = False, hears_hang_up: bool = False) -> None:
        self._raised = False
        self._hung_up = threading.Event()
        self._reloads = False
        self._said = f"\rxnli-worker: {doing}; again to quit\n" if doing else "\n"
        reader, self._writer = socket.socketpair()
        self._writer.settimeout(0)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _STOP:
            signal.signal(number, signal.default_int_handler if interrupt else _leave_it_to_the_thread)
        if hears_hang_up and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, _leave_it_to_the_thread)
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()

    def __call__(self) -> bool:
        """True if the process was asked to stop."""
        return self._raised or (not self._reloads and self._hung_up.is_set())

    def reload_on_hang_up(self) -> None:
        """From now on SIGHUP asks for the model to be loaded anew, one that came before too. Main thread."""
        self._reloads = True
        signal.signal(signal.SIGHUP, _leave_it_to_the_thread)

    def reload_asked(self) -> bool:
        """True once for one or more SIGHUPs that ask for the model to be loaded anew."""
        if not (self._reloads and self._hung_up.is_set()):
            return False
        self._hung_up.clear()
        return True

    def _watch(self, reader: socket.socket) -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if number == signal.SIGHUP:
                    self._hung_up.set()
                if number not in _STOP:
                    continue
                if self._raised:
                    _leave(1)
                self._raised = True
                if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
                    sys.stderr.write(self._said)
                    sys.stderr.flush()


def _leave_it_to_the_thread(_number: int, _frame: object) -> None:
    """A handler that does nothing: it keeps the signal's default action away."""


def collect_rarely() -> None:
    """Keep the search for cycles from what never dies, and from looking at each message dozens of times.

    What lives now (torch and transformers alone are half a million objects) stays until the end. Messages are freed by
    their reference counts; Python's threshold of 700 young objects, which a few dozen messages make, cost a tenth of
    all time outside the model, and the oldest generation stopped the loop for as long as a small batch takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def end(code: int) -> int:
    """Return the exit code, or end the process with it at once if a forward or a part of the start is under way.

    Python's own end would stop that thread in the middle of torch's C++, as soon as it asks for the interpreter again,
    and C++ answers with SIGABRT ("terminate called without an active exception") in place of our code; or it would wait
    for a download. Call it last: everything is closed, and no handler of ``atexit`` runs.
    """
    if any(thread.name in {INFERENCE_THREAD, START_THREAD} for thread in threading.enumerate()):
        if (error := sys.exception()) is not None:
            traceback.print_exception(error)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the reader of our output went away, or it is closed
                stream.flush()
        _leave(code)
    return code


def take_along(child: subprocess.Popen[bytes]) -> None:
    """Kill a child where a second signal ends this process."""
    _CHILDREN.append(child)


def _leave(code: int) -> NoReturn:
    """End now, and leave neither children behind nor files that this process has begun to download.

    The hub's client gives each try a name of its own and never reads what an earlier one left. Which files are ours
    only Linux tells.
    """
    for child in _CHILDREN:
        child.kill()
    with suppress(OSError):
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                file = descriptor.readlink()
                if file.name.endswith(_INCOMPLETE):
                    file.unlink()
    os._exit(code)


def share_arenas() -> None:
    """Let all threads allocate from few of glibc's arenas (M_ARENA_MAX in mallopt(3)). Call it before they begin.

    Threads that load a model come and go, and each may get another arena, of eight for each CPU. What is free at the
    end of an arena is given back by no call, `FreedMemory` neither: twelve models, each loaded in place of another,
    left 170 MB behind.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


class FreedMemory:
    """Gives memory that was freed back to the system, now and then.

    glibc keeps it for the next allocation, in pieces that fit ever fewer of them: tensors come in a thousand sizes, and
    resident memory grows for hours by a few per cent. To hand it over (malloc_trim(3)) takes 3 ms. Other C libraries
    keep less, and have no such call.
    """

    def __init__(self) -> None:
        self._trim: Callable[[int], object] | None = None
        with suppress(AttributeError, OSError, TypeError):
            self._trim = ctypes.CDLL(None).malloc_trim
        self._at_s = 0.0

    def give_back(self, now_s: float) -> None:
        """Every `TRIM_INTERVAL_S`, however often it is called."""
        if self._trim is not None and now_s >= self._at_s:
            self._at_s = now_s + TRIM_INTERVAL_S
            self._trim(0)
