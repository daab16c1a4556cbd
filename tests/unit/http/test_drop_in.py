"""APIs of others, by hand; their own clients ask in tests/integration/test_http_clients.py."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.http.served import TOKENS, Served, served, vector


@pytest.fixture(scope="module")
def worker() -> Iterator[Served]:
    with served(max_items="3") as found:
        yield found


ZERO_SHOT = {"inputs": "a", "parameters": {"candidate_labels": ["b", "c"]}}
SCORES = [{"label": "b", "score": 0.5}, {"label": "c", "score": 1 / 3}]
VECTOR = [pytest.approx(value) for value in vector("a").tolist()]


@pytest.mark.parametrize("path", ["/", "/models/scripted"])
def test_candidate_labels_ask_for_a_list_of_label_and_score(worker: Served, path: str) -> None:
    assert worker.ask(path, ZERO_SHOT).json == SCORES
    spelt = {"inputs": ["a", "b"], "parameters": {"candidate_labels": "b, c", "multi_label": True}}
    assert worker.ask(path, spelt).json == [SCORES, SCORES]


def test_another_model_is_not_served_under_its_name(worker: Served) -> None:
    answer = worker.ask("/models/facebook/bart-large-mnli", ZERO_SHOT)
    assert answer.status == 404
    assert "it is 'scripted'" in answer.json["error"]


def test_a_pair_asks_for_the_three_classes(worker: Served) -> None:
    classes = worker.ask("/", {"inputs": {"text": "a", "text_pair": "b"}}).json
    assert [found["label"] for found in classes] == ["neutral", "entailment", "contradiction"]
    assert [found["score"] for found in classes] == [0.5, 0.25, 0.25]
    assert worker.ask("/", {"inputs": [{"text": "a", "text_pair": "b"}]}).json == [classes]


def test_all_else_asks_for_a_vector_an_input(worker: Served) -> None:
    assert worker.ask("/", {"inputs": "a"}).json == VECTOR
    assert worker.ask("/", {"inputs": ["a", "a"], "parameters": {"normalize": True}}).json == [VECTOR, VECTOR]


def test_tei_answers_one_text_by_a_list_too(worker: Served) -> None:
    assert worker.ask("/embed", {"inputs": "a"}).json == [VECTOR]
    assert worker.ask("/embed", {"inputs": ["a", "a"], "truncate": True}).json == [VECTOR, VECTOR]


def test_a_text_that_may_not_be_cut_is_not(worker: Served) -> None:
    assert worker.ask("/embed", {"inputs": "long"}).status == 200
    answer = worker.ask("/embed", {"inputs": "long", "truncate": False})
    assert (answer.status, answer.json["field"]) == (413, "inputs")


def test_openai_has_numbers_or_base64(worker: Served) -> None:
    found = worker.ask("/v1/embeddings", {"input": ["a", "bc"], "model": "any"}).json
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert found["data"][0]["embedding"] == VECTOR
    assert found["usage"] == {"prompt_tokens": 2 * TOKENS, "total_tokens": 2 * TOKENS}
    found = worker.ask("/v1/embeddings", {"input": "a", "model": "any", "encoding_format": "base64"}).json
    decoded = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, vector("a"))
    assert found["model"] == "scripted"
    assert worker.ask("/v1/models").json["data"][0]["id"] == "scripted"


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/", {}, 422, "inputs"),
        ("/", {"inputs": []}, 422, "inputs"),
        ("/", {"inputs": ["a"] * 4}, 413, "inputs"),
        ("/", {"inputs": ""}, 422, "text"),
        ("/", {"inputs": "a", "parameters": {"candidate_labels": []}}, 422, "labels"),
        ("/", {"inputs": "a", "parameters": {"dimensions": 5}}, 422, "parameters.dimensions"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 422, "prompt_name"),
        ("/v1/embeddings", {"input": [1, 2], "model": "any"}, 422, "input"),
        ("/v1/embeddings", {"input": "a"}, 422, "model"),
        ("/v1/embeddings", {"input": "a", "model": "any", "dimensions": 2}, 422, "dimensions"),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(worker: Served, path: str, body: object, status: int, field: str) -> None:
    answer = worker.ask(path, body)
    assert (answer.status, answer.json["field"]) == (status, field), answer.json


def test_problems_speak_to_the_clients_of_others_too(worker: Served) -> None:
    assert worker.ask("/embed", {"inputs": ""}).json["error"].startswith("text = ''")
    error = worker.ask("/v1/embeddings", {"input": "", "model": "any"}).json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "text")
