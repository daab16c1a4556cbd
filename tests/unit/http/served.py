"""The whole HTTP side on a port of its own, with an engine that does as the texts say."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry

from worker import settings
from worker.endpoint import Endpoint
from worker.errors import DeviceAway, Reason, Rejection
from worker.http.calls import CallQueue
from worker.http.health import Health
from worker.messages import (
    Classification,
    Embedding,
    Encoded,
    Entailment,
    Judgement,
    LabelScore,
    ModelIdentity,
    Outcome,
    Pooling,
    Request,
    Row,
    Task,
    Work,
)
from worker.rules.retry import RetryPolicy
from worker.telemetry.metrics import Metrics

TOKENS = 8
DIMENSION = 4
AT_ONCE = RetryPolicy(max_attempts=1, initial_s=0.0, max_s=0.0, multiplier=1.0, jitter=0.0)


class Engine:
    """``wait``: computed when `go` is set. ``poison``: fails. ``refused``: at fault itself. ``away``: no device."""

    identity = ModelIdentity("scripted", "1")
    device = "none"
    precision = "none"
    pooling = Pooling.MEAN

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()  # a run that waits has begun
        self.runs: list[list[str]] = []
        self._row = Row(np.zeros(TOKENS, np.int32), 4)

    def encode(self, request: Request) -> Encoded:
        if request.text == "unreadable":
            raise Rejection(Reason.INVALID, "encode", "no language")
        count = max(1, len(request.hypotheses))
        return Encoded((self._row,) * count, 1, truncated="long" in request.text, tokens=TOKENS * count)

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        beat()
        self.runs.append([request.text for request, _ in requests])
        for request, _ in requests:
            if request.text == "wait":
                self.begun.set()
                self.go.wait(30)
            elif request.text == "poison":
                raise RuntimeError("the model stumbled")
            elif request.text == "refused":
                raise Rejection(Reason.INVALID, "inference", "infinities")
            elif request.text == "away":
                raise DeviceAway("the device is away")
        rows = sum(len(encoded.rows) for _, encoded in requests)
        work = Work(rows, rows, TOKENS * rows, TOKENS * rows, 0, 0, 1, 0.0)
        return [outcome(request) for request, _ in requests], work


def outcome(request: Request) -> Outcome:
    match request.task:
        case Task.CLASSIFY:
            scores = [LabelScore(label, 1 / (i + 2), 1 / (i + 2), 0.25, 0.25) for i, label in enumerate(request.labels)]
            return Classification(tuple(scores), multi_label=request.multi_label, abstained=False)
        case Task.ENTAIL:
            return Entailment(tuple(Judgement(hypothesis, 0.25, 0.5, 0.25) for hypothesis in request.hypotheses))
        case Task.EMBED:
            return Embedding(vector(request.text), request.pooling, normalized=request.normalize)


def vector(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(len(text)).random(DIMENSION, dtype=np.float32)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A worker's HTTP side. ``inference`` runs unless it is to be stepped by hand."""

    endpoint: Endpoint
    engine: Engine
    health: Health
    registry: CollectorRegistry

    @property
    def calls(self) -> CallQueue:
        assert self.endpoint.calls is not None
        return self.endpoint.calls

    def ask(
        self, path: str, body: object = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=30)
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, sent, kind | dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())  # type: ignore[arg-type]
        finally:
            connection.close()

    def connect(self, sent: bytes = b"") -> socket.socket:
        found = socket.create_connection(("127.0.0.1", self.endpoint.port), timeout=30)
        found.sendall(sent)
        return found

    def counted(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"xnli_worker_{metric}", labels) or 0.0


@contextmanager
def served(**variables: str) -> Iterator[Served]:
    """An endpoint with these settings of section http, and its inference thread."""
    with idle(**variables) as found:
        found.health.model_loaded()
        inference = found.endpoint.compute(found.engine, AT_ONCE)
        try:
            yield found
        finally:
            found.engine.go.set()
            inference.stop(5.0)


@contextmanager
def idle(**variables: str) -> Iterator[Served]:
    """As `served`, before the model is loaded."""
    given = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none:9092", "XNLI_MODEL__NAME": "scripted", "XNLI_HTTP__PORT": "0"}
    given |= {"XNLI_HTTP__INFERENCE": "true"} | {
        f"XNLI_HTTP__{name.upper()}": value for name, value in variables.items()
    }
    loaded = settings.load(None, given)
    registry = CollectorRegistry()
    health = Health(loop_limit_s=60, inference_limit_s=300)
    endpoint = Endpoint(loaded, health, Metrics(registry), registry, is_asked=loaded.http.inference)
    engine = Engine()
    try:
        yield Served(endpoint, engine, health, registry)
    finally:
        engine.go.set()
        endpoint.close()


def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for another thread."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.002)
