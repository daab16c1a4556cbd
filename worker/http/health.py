"""Is this worker alive, and does it serve? ``/healthz``, ``/readyz`` and ``/metrics`` over HTTP.

`Health` is written by the two threads and read by the server's. Each attribute has one writer and is replaced whole,
which the interpreter does atomically, so there is no lock. It knows no clock: times are monotonic seconds, given as
arguments.

A failing ``/healthz`` asks for a restart, so it fails only where a restart may help: a loop or a device that hangs.
A broker, a registry or a model that is away leaves the loop turning, and the worker healthy.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from worker import redaction
from worker.errors import SettingsError

_log = structlog.stdlib.get_logger(__name__)

_CLIENT_TIMEOUT_S = 5.0  # a client that neither sends nor reads may hold a thread for so long
_CLOSE_POLL_S = 0.1  # how soon the serving thread sees that it should end


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a probe. ``problems`` are sentences for the operator, empty when all is well."""

    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


class Health:
    """What the threads last reported, and what follows from it.

    Args:
        loop_limit_s: longest time between two steps of the Kafka loop. A step may drain, flush and commit for a revoked
            partition, so this must exceed the deadline of that.
        inference_limit_s: longest time the inference thread may spend between two reports while it has work. The
            slowest batch must fit: on a CPU, a full one of long texts takes many seconds.
    """

    def __init__(self, *, loop_limit_s: float, inference_limit_s: float) -> None:
        self._loop_limit_s = loop_limit_s
        self._inference_limit_s = inference_limit_s
        self._loop_at_s: float | None = None  # None: the loop has not begun; loading a model may take minutes
        self._inference_at_s: float | None = None  # None: no work in hand; waiting for some is no stall
        self._model_loaded = False
        self._assigned = 0
        self._draining = False
        self._stalled: tuple[str, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._inputs_missing: frozenset[str] = frozenset()
        self._broker_away = ""

    def loop_beat(self, now_s: float) -> None:
        """The Kafka loop begins a step. Before the first beat the worker is starting and held to no limit."""
        self._loop_at_s = now_s

    def inference_beat(self, now_s: float) -> None:
        """The inference thread begins a batch, or goes on with one."""
        self._inference_at_s = now_s

    def inference_idle(self) -> None:
        """The inference thread has handed back its batch and waits for another."""
        self._inference_at_s = None

    def model_loaded(self) -> None:
        """The checkpoint is loaded and passed its self-test."""
        self._model_loaded = True

    def assigned(self, partitions: int) -> None:
        """How many partitions are held; told at each rebalance."""
        self._assigned = partitions

    def stalled(self, partitions: tuple[str, ...]) -> None:
        """A sentence for each partition held that cannot be read, and how to mend it."""
        self._stalled = partitions

    def topics_missing(self, topics: Sequence[str]) -> None:
        """Which topics that we write to are not there."""
        self._missing = tuple(topics)

    def inputs_missing(self, topics: frozenset[str]) -> None:
        """Which topics that we read are not there; told at each step."""
        self._inputs_missing = topics

    def broker_away(self, why: str) -> None:
        """Why no broker answers; empty once one does."""
        self._broker_away = why

    @property
    def has_missing(self) -> bool:
        """Whether topics or the broker are not there."""
        return bool(self._missing or self._inputs_missing or self._broker_away)

    def draining(self) -> None:
        """Shutdown has begun; there is no way back."""
        self._draining = True

    def healthy(self, now_s: float) -> Verdict:
        """Whether loop and device make progress."""
        # Read once each: the threads go on writing while this runs.
        silences = (
            ("the Kafka loop", self._loop_at_s, self._loop_limit_s),
            ("the inference thread", self._inference_at_s, self._inference_limit_s),
        )
        return Verdict(
            tuple(
                f"{who} has made no progress for {now_s - at_s:.1f} s; the limit is {limit_s:g} s"
                for who, at_s, limit_s in silences
                if at_s is not None and now_s - at_s > limit_s
            )
        )

    def ready(self) -> Verdict:
        """Whether this worker takes part in the work: model, partitions and topics are there, no drain."""
        checks = (
            (self._model_loaded, "the model is not loaded yet"),
            (not self._broker_away, self._broker_away),
            (self._assigned > 0 or bool(self._broker_away), "no partitions are assigned"),
            (not self._draining, "the worker is draining"),
        )
        missing = (
            f"topic {topic!r} is not there: create it (xnli-worker topics create) or correct the setting"
            for topic in (*sorted(self._inputs_missing), *self._missing)
        )
        return Verdict((*(problem for passed, problem in checks if not passed), *missing, *self._stalled))


@dataclass(frozen=True, slots=True)
class _Page:
    status: HTTPStatus
    content_type: str
    body: bytes


def _verdict_page(verdict: Verdict) -> _Page:
    problems = [redaction.in_text(problem) for problem in verdict.problems]
    body = {"status": "ok" if verdict.ok else "failing", "problems": problems}
    return _json_page(HTTPStatus.OK if verdict.ok else HTTPStatus.SERVICE_UNAVAILABLE, body)


def _json_page(status: HTTPStatus, body: object) -> _Page:
    return _Page(status, "application/json", json.dumps(body).encode() + b"\n")


class _Server(socketserver.ThreadingTCPServer):
    """A thread per request, so that a slow client never keeps a probe waiting.

    Not `http.server.HTTPServer`: that one asks the resolver for the host's full name at bind time, which may take
    seconds.
    """

    daemon_threads = True  # an open connection never keeps the process alive
    block_on_close = False
    # POSIX: bind although connections of the former process linger. Windows would let two live servers share a port.
    allow_reuse_address = os.name == "posix"

    def __init__(self, host: str, port: int, pages: dict[str, Callable[[], _Page]]) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family  # IPv4 or IPv6, as the host is written
        self.pages = pages
        super().__init__((str(address[0]), port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 (the base class's signature)
        error = sys.exception()
        if isinstance(error, (ConnectionError, TimeoutError)):  # the client went away: its affair
            _log.debug("http_client_gone", client=str(client_address), error=repr(error))
        else:
            _log.error("http_request_failed", client=str(client_address), exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the server's pages. HTTP/1.0: one request a connection, nothing to keep open."""

    server: _Server
    timeout = _CLIENT_TIMEOUT_S
    server_version = "xnli-worker"
    sys_version = ""  # the Python version is nobody's business

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page_of = self.server.pages.get(urlsplit(self.path).path)
        if page_of is None:
            page = _json_page(HTTPStatus.NOT_FOUND, {"status": "not found", "paths": sorted(self.server.pages)})
        else:
            page = page_of()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's signature)
        """Write no access log: a probe every few seconds is no news."""


class HealthServer:
    """Serves the three endpoints on a daemon thread, from construction until `close`.

    A handler that fails is logged and answers nothing, which a probe counts as a failure. Should the serving thread
    itself die, every probe fails and the supervisor restarts the process.

    Args:
        host: address to listen on; 0.0.0.0 or :: for all.
        port: 0 picks a free one, see `port`.
        health: the state to report.
        registry: the metrics to expose.
        clock: the monotonic clock, in seconds, whose times `health` is given.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(
        self, host: str, port: int, *, health: Health, registry: CollectorRegistry, clock: Callable[[], float]
    ) -> None:
        pages = {
            "/healthz": lambda: _verdict_page(health.healthy(clock())),
            "/readyz": lambda: _verdict_page(health.ready()),
            "/metrics": lambda: _Page(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)),
        }
        try:
            self._server = _Server(host, port, pages)
        except OSError as error:
            raise _unusable(host, port, error) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_POLL_S,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving and free the port. Requests under way end with the process."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _unusable(host: str, port: int, error: OSError) -> SettingsError:
    if isinstance(error, socket.gaierror):
        return SettingsError(f"http.host: {host!r} is no address ({error.strerror}); use an address of this machine")
    if error.errno == errno.EADDRINUSE:
        return SettingsError(
            f"http.port: {port} on {host} is in use; stop what listens there, or choose another port (0: any free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError(f"http.host: {host!r} is no address of this machine; 0.0.0.0 listens on all of them")
    if error.errno == errno.EACCES:
        return SettingsError(f"http.port: {port} needs privileges this process does not have; choose one above 1023")
    return SettingsError(f"http.host, http.port: cannot listen on {host}:{port} ({error}); choose another address")
