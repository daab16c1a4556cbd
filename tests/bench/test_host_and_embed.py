"""The benchmarks that are no part of `tests.bench.engine` run to their end, at a small size."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.bench import embed, host
from worker.commands.workload import SHAPES, make_checkpoint


@pytest.mark.acceptance
def test_the_host_alone_answers_the_workload() -> None:
    report = host.measure(messages=32, runs=2)
    assert report["tokens"] > report["pairs"] > 32
    assert set(report["seconds"]) == set(host.STEPS)
    assert all(len(times) == 2 and min(times) > 0 for times in report["seconds"].values())
    assert "M tokens/s on one core" in host.table(report)


@pytest.mark.acceptance
def test_embeddings_of_one_length_are_measured(tmp_path: Path) -> None:
    directory = make_checkpoint(SHAPES["small"], tmp_path)
    arguments = argparse.Namespace(device="cpu", family="xlm-roberta", length=[16], tokens=16, runs=1, shape="small")
    report = {"family": "xlm-roberta", "shape": "small", "calls": embed.measure(arguments, directory), "machine": {}}
    assert set(report["calls"]) == {"16/1", "16/32"}
    assert "ours fp32" in embed.tables(report)
