"""Label sets in bounded memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from worker.label_sets import record, stored_sets
from worker.label_sets.record import LabelSetRecord, RefusedError
from worker.label_sets.stored_sets import StoredSets

MIB = 1 << 20


def filled(count: int, labels: int = 8) -> StoredSets:
    sets = StoredSets(64 * MIB, "This example is {}.")
    for i in range(count):
        value = json.dumps({"version": f"{i}", "labels": [f"label number {n}" for n in range(labels)]}).encode()
        sets.put(f"tenant-{i:06}", value, i % 12, i)
    return sets


@pytest.mark.parametrize("count", [1_000, 10_900, 11_000])
def test_what_sets_take_is_counted_honestly(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just after the dictionary has grown, and just before: what is counted is never less than what is taken."""
    monkeypatch.setattr(
        record, "read", lambda *_: LabelSetRecord(labels=("a",))
    )  # which keeps nothing, and takes its time while it is traced
    filled(1)  # whatever is made once
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    sets = filled(count)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before <= sets.bytes <= 1.4 * (after - before)


def test_a_set_beyond_the_limit_is_refused_and_the_others_stay() -> None:
    sets = StoredSets(4096, "{}")
    large = json.dumps(["x" * 3_000]).encode()
    sets.put("a", b'["small"]', 0, 0)
    with pytest.raises(RefusedError, match=r"label_sets\.max_bytes is 4096"):
        sets.put("b", json.dumps(["x" * 4_000]).encode(), 0, 1)
    sets.put("b", large, 0, 2)
    with pytest.raises(RefusedError):
        sets.put("a", large, 0, 3)
    assert (found := sets.find("a", None)) is not None
    assert (found.labels, found.version.version) == (("small",), "0/0")
    sets.remove("b")
    sets.put("a", large, 0, 4)
    sets.remove("a")
    sets.remove("never there")
    assert (len(sets), sets.bytes) == (0, 0)


def test_what_shrinks_is_taken_in_even_over_the_limit() -> None:
    sets = filled(10)
    sets._max_bytes = sets.bytes // 2
    sets.put("tenant-000003", b'["one"]', 0, 99)
    assert (found := sets.find("tenant-000003", None)) is not None
    assert found.labels == ("one",)


def test_a_new_version_is_what_is_found_from_then_on() -> None:
    sets = filled(3)
    old = sets.find("tenant-000001", "de")
    assert old is sets.find("tenant-000001", "DE"), "kept ready, by the code"
    changes = sets.changes
    sets.put("tenant-000001", b'["new"]', 3, 17)
    assert sets.changes == changes + 1
    assert (new := sets.find("tenant-000001", "de")) is not None
    assert (new.labels, new.version) == (("new",), ("tenant-000001", "3/17"))
    sets.remove("tenant-000001")
    assert sets.find("tenant-000001", "de") is None


def test_one_version_of_two_sets_is_told() -> None:
    sets = filled(0)
    assert not sets.put("s", b'{"version": "1", "labels": ["a"]}', 0, 0)
    assert not sets.put("s", b'{"version": "1",  "labels": ["a"]}', 0, 1)
    assert sets.put("s", b'{"version": "1", "labels": ["a", "b"]}', 0, 2)
    assert not sets.put("s", b'{"version": "2", "labels": ["a"]}', 0, 3)
    assert not sets.put("s", b'{"labels": ["b"]}', 0, 4)
    assert not sets.put("s", b'{"labels": ["c"]}', 0, 5)


def test_what_is_ready_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_sets, "READY_LABELS", 24)
    sets = filled(5)  # of eight labels each
    first, second = sets.find("tenant-000000", None), sets.find("tenant-000001", None)
    sets.find("tenant-000002", None)
    assert sets.find("tenant-000000", None) is first
    sets.find("tenant-000003", None)
    assert sets.find("tenant-000000", None) is first
    assert sets.find("tenant-000001", None) is not second
    assert sets._ready._ready_labels == 24


def test_what_is_no_language_code_takes_no_room_of_its_own() -> None:
    sets = filled(1)
    for i in range(50):
        sets.find("tenant-000000", f"{i}" * 40)
    assert len(sets._ready._ready) == 1


def test_a_set_of_a_file_has_a_version_by_its_content() -> None:
    sets = StoredSets(MIB, "This example is {}.")
    versions = []
    for value in (b'["a"]', b'["b"]', b'{"version": "7", "labels": ["c"]}'):
        sets.put_file("set", value)
        found = sets.find("set", None)
        assert found is not None
        versions.append(found.version.version)
    assert [version.partition("/")[0] for version in versions] == ["file", "file", "7"]
    assert len(set(versions)) == 3
    assert all(len(version) == len("file/") + 16 for version in versions[:2])
