from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import families
from worker import cli
from worker.commands.bench import alternating_runs
from worker.commands.roofline import products, roofline
from worker.inference.loading import load
from worker.inference.model import Checkpoint

ROOT = Path(__file__).parents[3]
# What torch and transformers do not bring along.
OTHERS = ("confluent_kafka", "fastavro", "prometheus_client", "pydantic_settings", "structlog", "tenacity")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_demo_checkpoint_is_measured_with_the_whole_worker_and_the_pipeline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bench", "--kafka", "--messages", "4", "--runs", "1", "--threads", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    subjects = report["subjects"]
    assert set(subjects) == {"engine", "whole worker", "transformers' pipeline", "matrix products alone"}
    assert all(len(figures["seconds"]) == 1 for figures in subjects.values())
    assert subjects["engine"]["engine_is_faster_by"] == 1
    assert subjects["transformers' pipeline"]["engine_is_faster_by"] > 1
    assert subjects["matrix products alone"]["engine_is_faster_by"] < 1
    assert report["workload"]["messages"] == 4
    assert report["workload"]["pairs"] > 8
    assert 0 <= report["padding_share"] < 0.2  # with AMX lengths are rounded
    assert report["machine"]["threads"] == 1


def test_a_terminal_gets_a_table_and_a_checkpoint_that_is_padded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNLI_MODEL__NAME", str(families.checkpoint("mpnet")))
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    assert cli.main(["bench", "--no-pipeline", "--messages", "4", "--runs", "1", "--precision", "fp32"]) == 0
    text = shown.getvalue()
    assert "engine" in text
    assert "messages/s" in text
    assert "in fp32" in text
    assert "0.0% padding" not in text
    assert "% padding" in text
    assert "matrix products" not in text  # nobody knows which transformers chooses
    assert "pipeline" not in text


def test_a_shape_needs_torch_and_transformers_alone() -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OTHERS!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from worker import cli
from worker.commands import workload
workload.SHAPES["small"] = workload.Shape(layers=2, hidden=64, heads=2)  # quick to make and to run
sys.exit(cli.main(["bench", "--shape", "small", "--messages", "1", "--runs", "1", "--no-pipeline"]))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["model"]["name"] == "random weights of small shape"


def test_a_checkpoint_that_does_not_classify_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_MODEL__LABELS", "[]")
    assert cli.main(["bench", "--messages", "1"]) == 2
    assert "does not classify" in capsys.readouterr().err


def open_checkpoint(family: str) -> Checkpoint:
    return load(str(families.checkpoint(family)), device="cpu", precision="fp32", self_test="off", progress=False)


def test_the_products_are_those_that_run_over_every_token() -> None:
    layer = [(96, 32), (32, 32), (64, 32), (32, 64)]
    assert products(open_checkpoint("bert")) == [*layer, (64, 32)]  # of the last layer keys and values
    crossed = [(96, 32), (32, 32), (32, 32), (64, 32), (32, 32), (64, 32), (32, 64)]
    assert products(open_checkpoint("bart")) == [*layer, *layer, *crossed, (64, 32), (64, 32)]


def test_no_roofline_is_made_up_for_what_is_padded() -> None:
    with pytest.raises(ValueError, match="mpnet"):
        roofline(open_checkpoint("mpnet"), 100)


def test_subjects_alternate_after_a_round_that_does_not_count() -> None:
    order: list[str] = []
    subjects = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = alternating_runs(subjects, runs=3)
    assert order == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]
