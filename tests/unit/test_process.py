from __future__ import annotations

import ctypes
import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from worker.process import THRESHOLDS, TRIM_INTERVAL_S, FreedMemory, collect_rarely


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_goes_back_though_a_live_block_lies_on_top_of_it() -> None:
    freed = FreedMemory()
    freed.give_back(1.0)
    before = resident_bytes()
    blocks = [np.ones(100_000, np.uint8) for _ in range(1_000)]
    kept = blocks[::100]
    blocks.clear()
    assert resident_bytes() > before + 50e6
    freed.give_back(1.0 + TRIM_INTERVAL_S)
    assert resident_bytes() < before + 20e6
    assert len(kept) == 10


def test_it_happens_now_and_then() -> None:
    freed = FreedMemory()
    trims: list[int] = []
    freed._trim = trims.append
    counts = []
    for step in range(200):
        freed.give_back(step / 2)
        counts.append(len(trims))
    assert [counts.index(n) / 2 for n in (1, 2, 3, 4)] == [TRIM_INTERVAL_S * n for n in range(4)]


def test_without_the_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    FreedMemory().give_back(1.0)


def test_what_lives_at_the_start_is_looked_through_no_more() -> None:
    thresholds = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


FORWARD_UNDER_WAY = """
import sys, time
import torch
from tests.unit.pipeline.test_infer import POLICY, Engine
from tests.delivery.doubles import job
from worker import cli
from worker.commands import check
from worker.errors import Stalled
from worker.messages import Batch, Trigger
from worker.pipeline.infer import InferenceThread

class Multiplies(Engine):
    def run(self, requests, beat):
        matrix = torch.ones(1500, 1500)
        while True:
            matrix @ matrix

def command(*_, **__):
    thread = InferenceThread(Multiplies(), POLICY, time.monotonic, lambda _: None, lambda: None)
    thread.start()
    thread.offer(Batch((job(0, "text"),), 1, 0.0, Trigger.WAIT))
    time.sleep(1.0)
    assert not thread.stop(0.1)
    print("the last line")  # into a pipe, so it waits in a buffer
    {how}

check.check = command
sys.exit(cli.main(["check"]))
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("return 1", ""),
        ("raise Stalled('no progress')", "xnli-worker: no progress"),
        ("raise ZeroDivisionError('a bug')", "ZeroDivisionError: a bug"),
    ],
)
def test_a_forward_under_way_does_not_change_the_exit_code(how: str, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORWARD_UNDER_WAY.format(how=how)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "the last line\n"), ended.stderr
    assert said in ended.stderr
    assert "terminate called" not in ended.stderr


INSIDE_A_LIBRARY = """
import sys
from confluent_kafka import Consumer
from worker.process import StopFlag
stop = StopFlag()
consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
print("waiting", flush=True)
try:
    consumer.list_topics(timeout=60)  # in C, where no handler of Python's is run
finally:
    print("came back", flush=True)
"""


def test_a_second_signal_ends_a_process_that_waits_inside_a_library() -> None:
    command = [sys.executable, "-c", INSIDE_A_LIBRARY]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 1
        assert process.stdout.read() == ""


HUNG_UP = """
import signal, sys, time
from worker.process import StopFlag
stop = StopFlag("draining", hears_hang_up=True)
print("ready", flush=True)
sys.stdin.readline()
{then}
time.sleep(0.2)
print(stop(), stop.reload_asked(), stop.reload_asked(), stop(), flush=True)
"""


def hang_up(then: str, times: int = 1, *, ignored: bool = False) -> str:
    """What a process says that got SIGHUP so many times before it went on."""
    prepare = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None
    with subprocess.Popen(
        [sys.executable, "-c", HUNG_UP.format(then=then)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,  # noqa: PLW1509 (no other thread runs here that could hold a lock)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(times):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        process.stdin.write("\n")
        process.stdin.flush()
        said = process.stdout.readline()
        assert process.wait(10) == 0
    return said


def test_a_hang_up_asks_for_a_stop_and_a_second_one_changes_nothing() -> None:
    assert hang_up("", times=2) == "True False False True\n"


def test_a_hang_up_asks_once_for_the_model_also_when_it_came_too_early() -> None:
    assert hang_up("stop.reload_on_hang_up()") == "False True False False\n"


def test_a_hang_up_that_was_ignored_from_the_beginning_stays_ignored() -> None:
    """nohup."""
    assert hang_up("", ignored=True) == "False False False False\n"
