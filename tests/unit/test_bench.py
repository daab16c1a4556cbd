from __future__ import annotations

from pathlib import Path

import pytest

from tests import families
from worker import bench
from worker.inference.engine import Engine
from worker.inference.loading import load


def test_the_workload_is_the_same_for_the_same_seed_and_spread_as_said() -> None:
    requests = bench.workload(400)
    assert requests == bench.workload(400)
    assert requests != bench.workload(400, seed=1)
    assert {len(request.labels) for request in requests} == set(range(2, 13))
    assert all(len(set(request.labels)) == len(request.labels) for request in requests)
    words = sorted(len(request.text.split()) for request in requests)
    assert words[200] == pytest.approx(25, abs=4)
    assert words[-10] > 75  # log-normal: the tail is long


def test_a_message_may_have_as_many_labels_as_are_asked_for() -> None:
    (request,) = bench.workload(1, labels=(64, 64))
    assert len(set(request.labels)) == 64


def test_a_checkpoint_of_a_shape_loads_and_answers(tmp_path: Path) -> None:
    directory = bench.make_checkpoint(bench.Shape(layers=2, hidden=64, heads=2), tmp_path)
    checkpoint = load(str(directory), device="cpu", precision="fp32", self_test="off", progress=False)
    engine = Engine(checkpoint, max_tokens=4096)
    requests = bench.workload(6)
    work = bench.answer(engine, requests, batch=4)
    assert [done.rows for done in work] == [
        sum(len(request.labels) for request in part) for part in (requests[:4], requests[4:])
    ]
    bench.floor(checkpoint, sum(done.tokens for done in work))()
    bench.zero_shot_pipeline(directory, requests[:1], device="cpu")()


def test_no_floor_is_made_up_for_another_architecture() -> None:
    checkpoint = load(str(families.checkpoint("bart")), device="cpu", precision="fp32", self_test="off", progress=False)
    with pytest.raises(ValueError, match="bart"):
        bench.floor(checkpoint, 100)


def test_subjects_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []
    turns: list[int] = []
    seconds = bench.alternate(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=3, done=lambda: turns.append(len(order))
    )
    assert order == ["a", "b"] * 4
    assert turns == list(range(1, 9))
    assert [len(times) for times in seconds.values()] == [3, 3]
