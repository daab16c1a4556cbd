from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.bench import engine
from worker.commands import workload
from worker.commands.workload import Shape


@pytest.mark.acceptance
def test_one_command_writes_a_table_for_each_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(workload.SHAPES, "small", Shape(layers=2, hidden=64, heads=2))
    monkeypatch.setattr(engine, "LABELS", (2, 3))
    arguments = ["--family", "all", "--shape", "small", "--messages", "2", "--runs", "1", "--out", str(tmp_path)]
    arguments += ["--only", "ours", "--only", engine.PIPELINE]
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    engine.main()
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(report["families"]) == set(workload.FAMILIES)
    assert all({"ours fp32", engine.PIPELINE} <= set(family["seconds"]) for family in report["families"].values())
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if line.startswith("| |")]
    assert len(heads) == len(workload.FAMILIES)
    assert len(set(heads)) == 1
    assert "left out" not in text
