from __future__ import annotations

from pathlib import Path

import pytest

from worker.commands.workload import Shape, answer, make_checkpoint, workload
from worker.inference.engine import Engine
from worker.inference.loading import load


def test_the_workload_is_the_same_for_the_same_seed_and_spread_as_said() -> None:
    requests = workload(400)
    assert requests == workload(400)
    assert requests != workload(400, seed=1)
    assert {len(request.labels) for request in requests} == set(range(2, 13))
    assert all(len(set(request.labels)) == len(request.labels) for request in requests)
    words = sorted(len(request.text.split()) for request in requests)
    assert words[200] == pytest.approx(25, abs=4)
    assert words[-10] > 75  # log-normal: the tail is long


def test_a_message_may_have_as_many_labels_as_are_asked_for() -> None:
    (request,) = workload(1, labels=(64, 64))
    assert len(set(request.labels)) == 64


def test_a_checkpoint_of_a_shape_loads_and_answers(tmp_path: Path) -> None:
    directory = make_checkpoint(Shape(layers=2, hidden=64, heads=2), tmp_path)
    checkpoint = load(str(directory), device="cpu", precision="fp32", self_test="off", progress=False)
    requests = workload(6)
    work = answer(Engine(checkpoint, max_tokens=4096), requests, batch=4)
    assert [done.rows for done in work] == [
        sum(len(request.labels) for request in part) for part in (requests[:4], requests[4:])
    ]
