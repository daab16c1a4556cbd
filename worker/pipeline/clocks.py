"""Time, as the pipeline sees it: tests give it a clock of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# While batches are under way their results are looked for every 2 ms.
BUSY_POLL_S: Final = 0.002

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Clocks:
    """Monotonic and wall-clock seconds, and how to let ``wait`` seconds pass."""

    monotonic_s: Clock = time.monotonic
    wall_s: Clock = time.time
    wait: Callable[[float], None] = time.sleep
