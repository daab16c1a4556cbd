"""A worker whose model follows a script: the real `run` command with the engine exchanged, for tests of delivery.

    python -m tests.faults.scripted

The script is in the texts themselves, so that every process and every attempt meets the same fault:

- ``slow=0.5``    the batch takes half a second longer
- ``poison``      the model raises for this text, every time
- ``flaky=2``     the model raises for this text until it has been alone with it twice in this process
- ``kill=137``    the process dies inside inference with this exit code (``os._exit``), every time
- ``hang``        the model never returns

``XNLI_TEST_SECONDS_PER_BATCH`` is what every batch takes, ``XNLI_TEST_SECONDS_PER_MESSAGE`` what each of its messages
adds. ``XNLI_TEST_HANG_AT_BATCH=8``: from the eighth batch of this process the model never returns, whatever the texts;
so it helps to start another.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from worker import process, settings
from worker.app import App
from worker.errors import WorkerError
from worker.messages import (
    Classification,
    Encoded,
    LabelScore,
    ModelIdentity,
    Outcome,
    Pooling,
    Request,
    Row,
    Work,
)
from worker.pipeline.served_model import Model
from worker.process import StopFlag
from worker.settings import Settings
from worker.telemetry import log

SECONDS_PER_BATCH = float(os.environ.get("XNLI_TEST_SECONDS_PER_BATCH", "0"))
SECONDS_PER_MESSAGE = float(os.environ.get("XNLI_TEST_SECONDS_PER_MESSAGE", "0"))
HANG_AT_BATCH = int(os.environ.get("XNLI_TEST_HANG_AT_BATCH", "0"))


class ScriptedError(Exception):
    """What the script made the model raise."""


class ScriptedModel:
    """Answers every label with the same score, at once, unless the text says otherwise. Needs no torch."""

    identity = ModelIdentity("scripted", "1")
    device = "none"
    precision = "none"
    pooling = Pooling.MEAN

    def __init__(self) -> None:
        self._attempts: Counter[str] = Counter()
        self._row = Row(np.zeros(8, np.int32), 4)
        self._batches = 0

    def encode(self, request: Request) -> Encoded:
        count = max(1, len(request.hypotheses))
        return Encoded((self._row,) * count, windows=1, truncated=False, tokens=8 * count)

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        beat()
        began_s = time.perf_counter()
        pause_s = SECONDS_PER_BATCH + SECONDS_PER_MESSAGE * len(requests)
        self._batches += 1
        if self._batches == HANG_AT_BATCH:
            time.sleep(3600)
        for request, _ in requests:
            pause_s += self._follow(request.text, alone=len(requests) == 1)
        if pause_s:
            time.sleep(pause_s)
        rows = sum(len(encoded.rows) for _, encoded in requests)
        outcomes: list[Outcome] = [
            Classification(
                tuple(LabelScore(label, 0.5, 0.5, 0.0, 0.5) for label in request.labels),
                multi_label=True,
                abstained=False,
            )
            for request, _ in requests
        ]
        tokens = 8 * rows
        return outcomes, Work(rows, rows, tokens, tokens, 0, 0, 1, time.perf_counter() - began_s)

    def _follow(self, text: str, *, alone: bool) -> float:
        if text.startswith("plain"):
            return 0.0
        if "poison" in text:
            raise ScriptedError(f"poison: {text[:40]}")
        if found := re.search(r"kill=(\d+)", text):
            os._exit(int(found[1]))
        if "hang" in text:
            time.sleep(3600)
        if found := re.search(r"flaky=(\d+)", text):
            if alone:
                self._attempts[text] += 1
            if self._attempts[text] < int(found[1]) + alone:
                raise ScriptedError(f"attempt {self._attempts[text]} of a flaky text")
        found = re.search(r"slow=([\d.]+)", text)
        return float(found[1]) if found else 0.0


def serve(engine: Callable[[Settings], Model]) -> int:
    """The `run` command with the engine of this function's making."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # to see where a worker hangs
    loaded = settings.load()
    log.configure(loaded.log.level, loaded.log.format, sys.stderr)
    stop = StopFlag()
    try:
        code = 0 if App(loaded, engine=engine(loaded)).run(stop) else 1
    except WorkerError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    return process.end(code)


if __name__ == "__main__":
    sys.exit(serve(lambda _: ScriptedModel()))
