from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.families.revisions import Link
from worker.inference.checkpoint_watch import POLL_S, QUIET_S, CheckpointWatch


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0


def looks(watch: CheckpointWatch, clock: Clock, seconds: float = 3 * QUIET_S) -> int:
    """How often it tells of a change in so many seconds."""
    told = 0
    end_s = clock.now_s + seconds
    while clock.now_s < end_s:
        clock.now_s += POLL_S
        told += watch.look(clock.now_s)
    return told


def checkpoint(folder: Path, text: str = "{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "one")


def test_what_was_there_at_first_is_no_change(folder: Path) -> None:
    assert looks(CheckpointWatch(str(folder)), Clock()) == 0


def test_a_file_that_is_written_is_told_of_once(folder: Path) -> None:
    watch, clock = CheckpointWatch(str(folder)), Clock()
    (folder / "config.json").write_text('{"a": 1}')
    assert looks(watch, clock) == 1
    (folder / "README.md").write_text("takes no part")
    assert looks(watch, clock) == 0


def test_a_file_of_the_same_size_in_its_place_is_another(folder: Path) -> None:
    watch, clock = CheckpointWatch(str(folder)), Clock()
    beside = folder.parent / "beside"
    shutil.copy2(folder / "model.safetensors", beside)
    beside.replace(folder / "model.safetensors")
    assert looks(watch, clock) == 1


def test_a_copy_under_way_is_waited_for(folder: Path) -> None:
    watch, clock = CheckpointWatch(str(folder)), Clock()
    told = 0
    for size in range(20):
        (folder / "model.safetensors").write_bytes(b"w" * size)
        clock.now_s += POLL_S
        told += watch.look(clock.now_s)
    assert told == 0
    assert looks(watch, clock) == 1


def test_a_link_that_leads_elsewhere_is_a_change_and_one_that_is_gone_for_a_moment_is_none(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", '{"a": 1}')
    link = Link(tmp_path / "current", one)
    watch, clock = CheckpointWatch(str(link.path)), Clock()
    link.path.unlink()
    assert looks(watch, clock) == 0
    link.to(one)
    assert looks(watch, clock) == 0
    link.to(two)
    assert looks(watch, clock) == 1
    link.to(one)
    assert looks(watch, clock) == 1
