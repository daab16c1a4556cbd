"""The API's own description, OpenAPI 3.1, made of the types that bodies are checked by."""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from worker import __version__
from worker.http import drop_in, native
from worker.http.problem import CONTENT_TYPE, STATUSES
from worker.messages import Task

_REFERENCE: Final = "#/components/schemas/{model}"
_TEXT: Final = "My parcel has not arrived."
_LABELS: Final = ["delivery", "payment", "praise"]
_PROBLEM: Final = {
    "type": "object",
    "description": "Problem details (RFC 9457). 429 and 503 say in Retry-After when to try again.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "field": {"type": "string", "description": "of the request, where one is to blame"},
        "item": {"type": "integer", "description": "its place, from 0, in a list of requests"},
        "error": {"description": "the same for clients of other APIs"},
    },
}
_VERDICT: Final = {
    "type": "object",
    "required": ["status", "problems"],
    "properties": {
        "status": {"enum": ["ok", "failing"]},
        "problems": {"type": "array", "items": {"type": "string"}},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}


class _Operation(NamedTuple):
    path: str
    summary: str
    body: dict[str, Any]
    answer: dict[str, Any]
    example: Any


def _ref(kind: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(model=kind.__name__)}


def _one_or_list(kind: type[BaseModel]) -> dict[str, Any]:
    return {"anyOf": [_ref(kind), {"type": "array", "items": _ref(kind), "minItems": 1}]}


def _lists(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _operations() -> list[_Operation]:
    number: dict[str, Any] = {"type": "number"}
    scores = _lists(_ref(drop_in.LabelAndScore))
    hugging_face = {"anyOf": [scores, _lists(scores), _lists(number), _lists(_lists(number))]}
    examples: dict[Task, dict[str, Any]] = {
        Task.CLASSIFY: {"text": _TEXT, "labels": _LABELS},
        Task.ENTAIL: {"text": _TEXT, "hypotheses": ["Something is late."]},
        Task.EMBED: {"text": _TEXT},
    }
    summaries = {
        Task.CLASSIFY: "Score labels for a text, or a list of texts",
        Task.ENTAIL: "Judge hypotheses by a text, or a list of texts",
        Task.EMBED: "Make a vector of a text, or of a list of texts",
    }
    hosted = {"inputs": _TEXT, "parameters": {"candidate_labels": _LABELS}}
    return [
        *(
            _Operation(
                f"/v1/{task.value.lower()}",
                summaries[task],
                _one_or_list(native.KINDS[task]),
                _one_or_list(native.RESULTS[task]),
                examples[task],
            )
            for task in Task
        ),
        *(
            _Operation(path, "Hugging Face's inference API", _ref(drop_in.HuggingFaceRequest), hugging_face, hosted)
            for path in ("/", "/models/{name}")
        ),
        _Operation("/embed", "TEI's embeddings", _ref(drop_in.TeiRequest), _lists(_lists(number)), {"inputs": _TEXT}),
        _Operation(
            "/v1/embeddings",
            "OpenAI's embeddings",
            _ref(drop_in.OpenAiRequest),
            _ref(drop_in.OpenAiAnswer),
            {"input": _TEXT, "model": "any"},
        ),
    ]


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _problems(*statuses: int) -> dict[str, Any]:
    content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": STATUSES[status], "content": content} for status in statuses}


def _ask(operation: _Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "security": [{"token": []}, {}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": operation.body, "example": operation.example}},
        },
        "responses": {
            "200": {"description": "The answer", "content": _json(operation.answer)},
            **_problems(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503),
        },
    }
    if "{name}" in operation.path:
        found["parameters"] = [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
                "description": "the name of the checkpoint that is served",
            }
        ]
    return found


def _watch(summary: str, content: dict[str, Any], *, may_fail: bool) -> dict[str, Any]:
    responses = {"200": {"description": "As asked", "content": content}}
    if may_fail:
        responses["503"] = {"description": "Not so; the problems say why", "content": content}
    return {"get": {"summary": summary, "responses": responses}}


@functools.cache
def document() -> dict[str, Any]:
    """The description, as JSON has it."""
    bodies: list[type[BaseModel]] = [
        *native.KINDS.values(), drop_in.HuggingFaceRequest, drop_in.TeiRequest, drop_in.OpenAiRequest,
    ]  # fmt: skip
    answers: list[type[BaseModel]] = [*native.RESULTS.values(), drop_in.LabelAndScore, drop_in.OpenAiAnswer]
    _, schemas = models_json_schema(
        [*((body, "validation") for body in bodies), *((answer, "serialization") for answer in answers)],
        ref_template=_REFERENCE,
    )
    text = {"text/plain": {"schema": {"type": "string"}}}
    page = {"text/html": {"schema": {"type": "string"}}}
    anything = _json({"type": "object"})
    paths: dict[str, Any] = {
        "/healthz": _watch("Whether loop and device make progress", _json(_VERDICT), may_fail=True),
        "/readyz": _watch("Whether this worker takes part in the work", _json(_VERDICT), may_fail=True),
        "/metrics": _watch("Prometheus metrics", text, may_fail=False),
        "/openapi.json": _watch("This description", anything, may_fail=False),
        "/": _watch("The page", page, may_fail=False),
        "/v1/models": _watch("OpenAI's list of models: the one that is served", anything, may_fail=False),
    }
    for guarded in ("/", "/v1/models"):
        paths[guarded]["get"]["security"] = [{"token": []}, {}]
        paths[guarded]["get"]["responses"] |= _problems(401, 403, 404, 503)
    for operation in _operations():
        paths.setdefault(operation.path, {})["post"] = _ask(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "xnli-worker", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | {"Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
