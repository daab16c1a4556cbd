"""The start can be stopped, says what it does, and does not hang for ever."""

from __future__ import annotations

import threading
import time
from typing import NoReturn

import pytest
import structlog
from structlog.testing import capture_logs

from worker import process
from worker.errors import CheckpointError, Stalled
from worker.inference.stage import Tell
from worker.start import Start, Stopped


@pytest.fixture
def hang() -> threading.Event:
    """Work that waits for it hangs."""
    return threading.Event()


def never() -> bool:
    return False


def test_what_the_work_returns_or_raises_comes_through() -> None:
    def refuse(_: Tell) -> NoReturn:
        raise CheckpointError("no head")

    assert Start(never).run(lambda _: 5) == 5
    with pytest.raises(CheckpointError, match="no head"):
        Start(never).run(refuse)


def test_a_stop_is_seen_while_the_work_hangs(hang: threading.Event) -> None:
    deadline_s = time.monotonic() + 0.2
    with pytest.raises(Stopped):
        Start(lambda: time.monotonic() > deadline_s).run(lambda _: hang.wait())
    assert time.monotonic() < deadline_s + 1
    assert process.START_THREAD in {thread.name for thread in threading.enumerate()}
    hang.set()


def test_a_stop_wins_over_what_the_work_makes_of_it() -> None:
    """Work that waits by `Start.wait` meets the stop itself, and may take it for a failure."""
    stopping = threading.Event()
    start = Start(stopping.is_set)

    def work(_: Tell) -> None:
        try:
            start.wait(60)
        except Stopped as stopped:
            raise CheckpointError("could not be downloaded") from stopped

    threading.Timer(0.05, stopping.set).start()
    with pytest.raises(Stopped):
        start.run(work)


def test_no_progress_for_as_long_as_was_said_ends_it(hang: threading.Event) -> None:
    def work(tell: Tell) -> None:
        for megabytes in range(5):
            tell("downloading some/nli", 0.3, f"{megabytes} MB")
            time.sleep(0.15)
        hang.wait()

    began_s = time.monotonic()
    with pytest.raises(Stalled, match=r"downloading some/nli: no progress for 0\.3 s after 4 MB; see whether"):
        Start(never).run(work)
    assert time.monotonic() > began_s + 0.8
    hang.set()


def test_each_stage_is_told_of_once_and_again_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.start.REPEAT_S", 0.15)

    def work(tell: Tell) -> None:
        tell("importing", 60)
        for _ in range(10):
            tell("downloading", 60, "3 MB")
            time.sleep(0.05)

    structlog.reset_defaults()
    with capture_logs() as logs:
        Start(never).run(work)
    told = [(line["doing"], line.get("done")) for line in logs]
    assert told[:2] == [("importing", None), ("downloading", None)]
    assert set(told[2:]) == {("downloading", "3 MB")}
    assert 1 <= len(told[2:]) <= 4
