"""/v1/classify, entail and embed: the fields of the Avro request, its rules, and what is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.http.served import AT_ONCE, DIMENSION, Engine, Served, idle, served, until
from worker.messages import Classification, LabelScore, Outcome, Request
from worker.rules.calibration import Calibration, Calibrations, Isotonic, KnownLabel


@pytest.fixture(scope="module")
def worker() -> Iterator[Served]:
    with served(max_items="3") as found:
        yield found


def test_one_request_is_answered_by_one_result(worker: Served) -> None:
    answer = worker.ask("/v1/classify", {"id": "mine", "text": "a", "labels": ["b", "c"], "attributes": {"k": "v"}})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == {
        "id": "mine",
        "task": "CLASSIFY",
        "attributes": {"k": "v"},
        "outcome": {
            "labels": [
                {"label": "b", "score": 0.5, "entailment": 0.5, "neutral": 0.25, "contradiction": 0.25},
                {"label": "c", "score": 1 / 3, "entailment": 1 / 3, "neutral": 0.25, "contradiction": 0.25},
            ],
            "multi_label": False,
            "abstained": False,
            "evidence_cut": False,
        },
        "model": {"name": "scripted", "revision": "1"},
        "truncated": False,
        "windows": 1,
    }


def test_a_list_is_answered_by_a_list_in_its_order(worker: Served) -> None:
    answer = worker.ask("/v1/entail", [{"text": f"text {i}", "hypotheses": [str(i)]} for i in range(3)])
    judged = [one["outcome"]["judgements"][0]["hypothesis"] for one in answer.json]
    assert judged == ["0", "1", "2"]
    assert len({one["id"] for one in answer.json}) == 3  # each has a name of its own


def test_an_embedding_says_how_it_was_made(worker: Served) -> None:
    outcome = worker.ask("/v1/embed", {"text": "a", "pooling": "CLS", "normalize": False}).json["outcome"]
    assert (outcome["dimension"], outcome["pooling"], outcome["normalized"]) == (DIMENSION, "CLS", False)
    assert len(outcome["vector"]) == DIMENSION


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/classify", {"text": "a"}, 422, "labels"),
        ("/v1/classify", {"text": "a", "labels": ["b", " "]}, 422, "labels[1]"),
        ("/v1/classify", {"text": "a", "labels": ["b"], "task": "EMBED"}, 422, "task"),
        ("/v1/classify", {"text": "a", "labels": [1] * 1000}, 422, "labels.0"),
        ("/v1/classify", {"text": "a", "labels": ["b"], "threshold": 2.0}, 422, "threshold"),
        ("/v1/classify", {"text": "a", "labels": ["b"], "label_sets": "x"}, 422, "label_sets"),
        ("/v1/classify", {"text": "a", "label_set": "unknown"}, 422, "label_set"),
        ("/v1/classify", {"text": "a", "labels": ["b"], "id": ""}, 422, "id"),
        ("/v1/classify", {"labels": ["b"]}, 422, "text"),
        ("/v1/classify", {"text": "\ud800", "labels": ["b"]}, 422, "text"),
        ("/v1/classify", {"text": "a", "labels": ["b"] * 257}, 413, "labels"),
        ("/v1/entail", {"text": "a"}, 422, "hypotheses"),
        ("/v1/embed", {"text": "\u200b"}, 422, "text"),
        ("/v1/embed", {"text": "a" * 100_001}, 413, "text"),
        ("/v1/embed", "text", 422, None),
        ("/v1/embed", None, 422, None),
        ("/v1/embed", [], 422, None),
        ("/v1/embed", [{"text": "a"}] * 4, 413, None),
        ("/v1/embed", {"text": "unreadable"}, 422, None),
        ("/v1/embed", {"text": "refused"}, 422, None),
    ],
)
def test_what_is_at_fault_is_said_with_its_field(
    worker: Served, path: str, body: object, status: int, field: str | None
) -> None:
    answer = worker.ask(path, body if body is not None else b"null")
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem: dict[str, Any] = answer.json
    assert problem.get("field") == field
    assert problem["status"] == status
    assert problem["detail"]


def test_of_a_list_the_item_at_fault_is_named(worker: Served) -> None:
    problem = worker.ask("/v1/embed", [{"text": "a"}, {"text": ""}]).json
    assert (problem["item"], problem["field"]) == (1, "text")
    problem = worker.ask("/v1/embed", [{"text": "a"}, {"text": "b"}, {"text": "refused"}]).json
    assert (problem["status"], problem["item"]) == (422, 2)


def test_a_text_that_the_model_fails_on_fails_nobody_else(worker: Served) -> None:
    answer = worker.ask("/v1/embed", {"text": "poison"})
    assert (answer.status, answer.json["title"]) == (500, "It could not be computed")
    assert worker.ask("/v1/embed", {"text": "a"}).status == 200


def test_a_device_that_is_away_is_told_at_once(worker: Served) -> None:
    answer = worker.ask("/v1/embed", {"text": "away"})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert worker.ask("/v1/embed", {"text": "a"}).status == 200


def test_requests_are_counted_by_path_and_status(worker: Served) -> None:
    before = worker.counted("http_requests_total", path="/v1/embed", status="422")
    worker.ask("/v1/embed", {"text": ""})
    until(lambda: worker.counted("http_requests_total", path="/v1/embed", status="422") > before, "the count")
    assert worker.counted("http_seconds_count", path="/v1/embed") > 0


def test_calibrated_scores_stand_beside_the_raw_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = Isotonic((-1.0, 1.0), (0.1, 0.3))
    known = Calibration("c", Engine.identity, (KnownLabel("b", ("This example is b.",), curve),))

    def outcome(request: Request) -> Outcome:
        assert request.calibrator is not None
        found = request.calibrator([0, 1], [0.5, 0.5])
        scores = [LabelScore(*(label, 0.5, 0.5, 0.0, 0.5), calibrated=found[i]) for i, label in enumerate("bc")]
        return Classification(tuple(scores), multi_label=True, abstained=False)

    monkeypatch.setattr("tests.unit.http.served.outcome", outcome)
    with idle() as found:
        inference = found.endpoint.compute(found.engine, AT_ONCE, Calibrations({"c": known}, known))
        try:
            body = {"text": "a", "labels": ["b", "c"], "multi_label": True}
            labels = found.ask("/v1/classify", body).json["outcome"]["labels"]
        finally:
            inference.stop(5.0)
    assert labels[0]["calibrated"] == pytest.approx(0.2)
    assert "calibrated" not in labels[1]
