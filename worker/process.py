"""What concerns the process as a whole: Python's search for cycles, memory that was freed, and the end."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

# The thread that may be inside the device when the process ends; see `end`.
INFERENCE_THREAD: Final = "inference"

# Young objects that begin a search, and searches of each generation that begin one of the next.
THRESHOLDS: Final = (20_000, 50, 100)
TRIM_INTERVAL_S: Final = 30.0


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
    """Return the exit code, or end the process with it at once if a forward is still under way.

    Python's own end would stop that thread in the middle of torch's C++, as soon as it asks for the interpreter again,
    and C++ answers with SIGABRT ("terminate called without an active exception") in place of our code. Call it last:
    everything is closed, and no handler of ``atexit`` runs.
    """
    if any(thread.name == INFERENCE_THREAD for thread in threading.enumerate()):
        if (error := sys.exception()) is not None:
            traceback.print_exception(error)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the reader of our output went away, or it is closed
                stream.flush()
        os._exit(code)
    return code


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
