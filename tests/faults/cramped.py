"""The real worker on a device that is short of memory: engine and budget are real, only the device is told what fits.

    XNLI_TEST_ROOM_TOKENS=100 python -m tests.faults.cramped

Once the model is warm, a forward of more tokens than that raises what torch raises where CUDA has no memory left, as if
another process had taken it. SIGUSR2 gives the memory back.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tests.faults.scripted import serve
from worker.app import load_engine
from worker.inference.engine import Engine
from worker.inference.forwards.families import Forward
from worker.messages import Pooling, Row
from worker.settings import Settings


class Cramped:
    """A forward as it is, for as many tokens as there is room for."""

    def __init__(self, forward: Forward, room: float) -> None:
        self._forward = forward
        self.room = room

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return self._forward.slots(lengths)

    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        self._allocate(rows)
        return self._forward.logits(rows)

    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        self._allocate(rows)
        return self._forward.pooled(rows, pooling)

    def _allocate(self, rows: Sequence[Row]) -> None:
        tokens = sum(len(row.token_ids) for row in rows)
        if tokens > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} MiB. GPU 0 is somebody's.")


def _engine(settings: Settings) -> Engine:
    torch.set_num_threads(1)
    engine = load_engine(settings)
    forward = Cramped(engine._forward, int(os.environ["XNLI_TEST_ROOM_TOKENS"]))
    engine._forward = forward

    def give_back(_number: int, _frame: object) -> None:
        forward.room = float("inf")

    signal.signal(signal.SIGUSR2, give_back)
    return engine


if __name__ == "__main__":
    sys.exit(serve(_engine))
