"""Our own description: schemathesis asks by it at random, as it says and otherwise, and the answers are as it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.unit.http.served import Served, served
from worker.http.openapi import document

CHECKS: Any = [
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = [
    (path, method)
    for path, operations in document()["paths"].items()
    for method in operations
    if method in {"get", "post"}
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Served]:
    with served() as found:
        yield found


def ask_at_random(worker: Served, path: str, method: str, requests: int) -> None:
    operation: Any = SCHEMA[path][method.upper()]
    modes = [GenerationMode.POSITIVE]
    if method == "post":
        modes.append(GenerationMode.NEGATIVE)
    cases: Any = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    @settings(max_examples=requests, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def ask(case: Any) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{worker.endpoint.port}", timeout=30)
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=CHECKS)

    ask()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described(worker: Served, path: str, method: str) -> None:
    ask_at_random(worker, path, method, 25 if method == "post" else 3)


@pytest.mark.acceptance
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("path", "method"), [found for found in OPERATIONS if found[1] == "post"])
def test_answers_are_as_described_whatever_is_asked(worker: Served, path: str, method: str) -> None:
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    ask_at_random(worker, path, method, 20_000 // 7 + 1)
    assert worker.ask("/healthz").status == 200


def test_what_is_served_is_what_is_described(worker: Served) -> None:
    assert worker.ask("/openapi.json").json == document()
    for path, method in OPERATIONS:
        asked = worker.ask(path.replace("{name}", "scripted"), None if method == "get" else {})
        assert asked.status not in {404, 405}, path
