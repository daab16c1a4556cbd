"""A scripted worker whose wall clock can be set: SIGUSR2 sets it back by an hour, as an administrator or NTP may.

python -m tests.faults.clocks
"""

from __future__ import annotations

import signal
import sys
import time

BACK_S = 3600.0

_true_time = time.time
_true_time_ns = time.time_ns
_shift_s = 0.0


def _set_back(_number: int, _frame: object) -> None:
    global _shift_s  # noqa: PLW0603 (the clock is the process's)
    _shift_s -= BACK_S


# Before the worker is imported: it takes the function for its own.
time.time = lambda: _true_time() + _shift_s
time.time_ns = lambda: _true_time_ns() + int(_shift_s * 1e9)
signal.signal(signal.SIGUSR2, _set_back)

from tests.faults.scripted import ScriptedModel, serve  # noqa: E402 (see above)

if __name__ == "__main__":
    sys.exit(serve(lambda _: ScriptedModel()))
