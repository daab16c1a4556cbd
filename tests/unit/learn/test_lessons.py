"""What is asked of the model before it is trained: of texts to learn from, and of texts to rehearse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.learn.test_training_pairs import asked
from worker.errors import SettingsError
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.learn import lessons
from worker.learn.scoring import Asked
from worker.learn.training_pairs import CONTRADICTED, ENTAILED
from worker.messages import Request


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load("demo", device="cpu", precision="fp32"), max_tokens=4096)


def about(text: str, *labels: str, expected: str = "") -> Asked:
    one = asked(1, (expected,) if expected else ())
    request = replace(
        one.request, text=text, labels=labels, hypotheses=tuple(f"This text is about {label}." for label in labels)
    )
    return replace(one, example=replace(one.example, text=text, labels=labels, place="file:7"), request=request)


def requests(count: int) -> list[Request]:
    return [replace(asked(n, ()).request, hypotheses=(f"own {n}", f"other {n}")) for n in range(count)]


def test_a_text_is_asked_about_its_own_hypotheses_and_those_of_others() -> None:
    given = requests(30)
    found = {request.id: request.hypotheses for request in lessons.rehearsed(given, (), 0)}
    assert found.keys() == {request.id for request in given}
    known = {hypothesis for request in given for hypothesis in request.hypotheses}
    for request in given:
        asked_about = found[request.id]
        assert asked_about[:2] == request.hypotheses
        assert len(set(asked_about)) == len(asked_about) == lessons._HYPOTHESES
        assert set(asked_about) <= known


def test_texts_to_learn_from_are_rehearsed_too_and_labels_that_are_learnt_are_not() -> None:
    given = requests(30)
    beside = [replace(asked(100 + n, ()).request, hypotheses=("own 1", f"new {n}")) for n in range(5)]
    found = lessons.rehearsed(given, beside, 0)
    assert {int(request.id) for request in found} == {*range(30), *range(100, 105)}
    hypotheses = {hypothesis for request in found for hypothesis in request.hypotheses}
    assert hypotheses == {f"{kind} {n}" for kind in ("own", "other") for n in range(30)} - {"own 1"}
    assert {len(request.hypotheses) for request in found if int(request.id) >= 100} == {lessons._BESIDE}


def test_of_many_texts_some_are_drawn_the_same_for_the_same_seed() -> None:
    given = requests(1000)
    found = lessons.rehearsed(given, (), 0)
    assert len(found) == lessons._LEAST_REHEARSED
    assert found == lessons.rehearsed(given, (), 0)
    assert found != lessons.rehearsed(given, (), 1)
    assert lessons.rehearsed([], [asked(1, ()).request], 0) == []
    assert lessons.rehearsed([asked(1, ()).request], [asked(2, ()).request], 0) == []  # all of it is learnt


def test_the_rival_contradicted_is_the_one_that_the_model_believes_the_most(engine: Engine) -> None:
    one = about("The striker scored twice.", "finance", "sport", "weather", expected="finance")
    steps = []
    entailed, contradicted = lessons.learnt(engine, [one], 1, 4096, lambda: steps.append(1))
    assert entailed.target == ENTAILED
    assert contradicted.target == CONTRADICTED
    rows = engine.encode(one.request).rows
    assert list(entailed.row.token_ids) == list(rows[0].token_ids)
    assert list(contradicted.row.token_ids) == list(rows[1].token_ids)
    assert steps == [1]


def test_what_is_rehearsed_keeps_what_the_model_says(engine: Engine) -> None:
    request = about("The striker scored twice.", "sport", "weather").request
    sport, weather = lessons.kept(engine, [request], 4096, lambda: None)
    assert sport.target.entailment > 0.9
    assert weather.target.contradiction > 0.9


def test_what_the_model_cannot_read_is_told_of_an_example_and_left_out_of_the_rehearsal(engine: Engine) -> None:
    one = about("Short.", "sport", "weather " * 600, expected="sport")
    with pytest.raises(SettingsError, match=r"file:7: hypothesis .*leaves 0 of the model's 512"):
        lessons.learnt(engine, [one], 6, 4096, lambda: None)
    good = about("Short.", "sport").request
    assert len(lessons.kept(engine, [one.request, good], 4096, lambda: None)) == 1
