"""Everything that the worker answers over HTTP, path by path, as one Starlette application."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from worker import redaction
from worker.http import drop_in, native
from worker.http.asked import Read
from worker.http.bearer import Bearer
from worker.http.body import Lingering
from worker.http.health import Health, Verdict
from worker.http.inference import Inference
from worker.http.openapi import document
from worker.http.page import Page
from worker.http.problem import Kind, Problem
from worker.messages import Task
from worker.telemetry.http_metrics import HttpMetrics

if TYPE_CHECKING:
    from worker.telemetry.call_traces import CallSpan, CallTraces

log = structlog.stdlib.get_logger(__name__)

_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_GONE: Final = 499  # nginx's number for a client that went away: nobody gets it, but it is counted

ErrorOf = Callable[[Problem], Any]


def _plain_error(problem: Problem) -> str:
    """What clients of Hugging Face and TEI look for under ``error``."""
    return problem.detail


def _openai_error(problem: Problem) -> dict[str, Any]:
    """What OpenAI's clients look for under ``error``."""
    kind = "invalid_request_error" if problem.kind in {Kind.INVALID, Kind.TOO_LARGE, Kind.MALFORMED} else problem.kind
    return {"message": problem.detail, "type": kind, "param": problem.field or None, "code": problem.kind}


@dataclass(frozen=True, slots=True)
class Watched:
    """What is served of a worker whether or not it answers requests.

    ``clock`` is the monotonic clock, in seconds, whose times ``health`` is given.
    """

    health: Health
    registry: CollectorRegistry
    metrics: HttpMetrics
    clock: Callable[[], float]


class _Line(JSONResponse):
    """JSON that ends its line: on a terminal the prompt comes behind it."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


class Site:
    """The application.

    Args:
        watched: The worker's state and metrics.
        inference: Answers requests.
        bearer: Who may ask for inference and see the page.
        page: What a person sees.

    ``traces`` may be set later: they are opened when the worker starts.
    """

    def __init__(self, watched: Watched, inference: Inference, bearer: Bearer, page: Page) -> None:
        self.traces: CallTraces | None = None
        self._watched = watched
        self._inference = inference
        self._bearer = bearer
        self._page = page
        self._lingering = Lingering()
        self.app = Starlette(
            routes=self._routes(),
            exception_handlers={HTTPException: _of_starlette, Problem: _of_problem, Exception: _of_bug},
        )

    def _routes(self) -> list[BaseRoute]:
        asks: list[tuple[str, Read, ErrorOf | None]] = [
            *((f"/v1/{task.value.lower()}", native.reader(task), None) for task in Task),
            ("/", drop_in.hugging_face, _plain_error),
            ("/models/{name:path}", drop_in.hugging_face, _plain_error),
            ("/embed", drop_in.tei, _plain_error),
            ("/v1/embeddings", drop_in.openai, _openai_error),
        ]
        return [
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/readyz", self._readyz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            *self._page.routes(self._bearer),
            *(Route(path, _Endpoint(self, path, read, error_of), methods=["POST"]) for path, read, error_of in asks),
        ]

    async def _healthz(self, _: Request) -> Response:
        return _verdict(self._watched.health.healthy(self._watched.clock()))

    async def _readyz(self, _: Request) -> Response:
        return _verdict(self._watched.health.ready())

    async def _metrics(self, _: Request) -> Response:
        self._watched.metrics.waiting(self._inference.waiting)
        body = generate_latest(self._watched.registry)
        return Response(body, headers=_HEADERS, media_type=CONTENT_TYPE_LATEST)

    async def _openapi(self, _: Request) -> Response:
        return _Line(document(), headers=_HEADERS)

    async def _models(self, request: Request) -> Response:
        self._bearer.require(request)
        model = self._inference.require().rules.model
        data = [{"id": model.name, "object": "model", "created": 0, "owned_by": "xnli-worker"}]
        return _Line({"object": "list", "data": data}, headers=_HEADERS)

    async def ask(self, endpoint: _Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for inference, and count it."""
        request = Request(scope, receive)
        began_s = time.monotonic()
        if self.traces is None:
            status, _ = await self._answered(endpoint, request, send)
        else:
            with self.traces.call(scope, endpoint.path) as span:
                status, error = await self._answered(endpoint, request, send, span)
                if status == _GONE:
                    span.failed(error)
                else:
                    span.answered(status, error)
        self._watched.metrics.answered(endpoint.path, status, time.monotonic() - began_s)

    async def _answered(
        self, endpoint: _Endpoint, request: Request, send: Send, span: CallSpan | None = None
    ) -> tuple[int, str]:
        """Answer a request for inference. Returns the status, and the kind of error if it is one."""
        try:
            self._bearer.require(request)
            self._require_model(request)
            return await self._inference.answer(request, endpoint.read, send, span), ""
        except Problem as problem:
            error = endpoint.error_of(problem) if endpoint.error_of is not None else None
            response = problem.response(error)
            response.headers.update(_HEADERS)
            await self._lingering.send(response, request, send)
            return response.status_code, problem.kind
        except ClientDisconnect:
            return _GONE, ClientDisconnect.__name__

    def _require_model(self, request: Request) -> None:
        """Raise Problem if another model is asked for by its name in the path."""
        name = request.path_params.get("name")
        if name is not None and name != (served := self._inference.require().rules.model.name):
            raise Problem(Kind.NOT_FOUND, f"no model {name[:200]!r} is served here; it is {served!r}", "name")


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A path that answers requests for inference, as an application of its own: it sends its answer by itself."""

    site: Site
    path: str
    read: Read
    error_of: ErrorOf | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.site.ask(self, scope, receive, send)


def _verdict(verdict: Verdict) -> Response:
    problems = [redaction.in_text(problem) for problem in verdict.problems]
    body: dict[str, Any] = {"status": "ok" if verdict.ok else "failing", "problems": problems}
    if verdict.notes:
        body["notes"] = [redaction.in_text(note) for note in verdict.notes]
    return _Line(body, 200 if verdict.ok else 503, _HEADERS)


async def _of_problem(_: Request, problem: Exception) -> Response:
    if not isinstance(problem, Problem):
        raise problem
    response = problem.response()
    response.headers.update(_HEADERS)
    return response


async def _of_starlette(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not by this method."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        # (Starlette tells those of the first route with this path.)
        found = (route.methods for route in request.app.routes if route.path_regex.match(request.url.path))
        allowed = ", ".join(sorted(set[str]().union(*found)))
        problem = Problem(Kind.METHOD, f"{request.url.path} takes {allowed}", headers={"Allow": allowed})
    else:
        problem = Problem(Kind.NOT_FOUND, f"no {request.url.path[:200]} here; /openapi.json lists what there is")
    return await _of_problem(request, problem)


async def _of_bug(request: Request, _: Exception) -> Response:
    """A mistake of ours. uvicorn writes the traceback to the log."""
    return await _of_problem(request, Problem(Kind.FAILED, "a mistake of the worker's; its log says more"))
