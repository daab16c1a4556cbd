"""Load over HTTP beside a stream: requests right and wrong, clients that go away, and connections that keep silent."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.workers import WorkerProcess

PROBE_S = 1.0
_HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


class HttpLoad:
    """Asks workers on threads until it is told to stop. ``statuses`` counts what was answered, by kind of request.

    ``wrong`` holds what no worker may answer: a 5xx other than 503 to what the model does not fail on, and a probe that
    is late.
    """

    def __init__(self, members: Sequence[WorkerProcess], seed: int, clients: int = 4) -> None:
        self._members = members
        self._stopping = threading.Event()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + number),), daemon=True)
            for number in range(clients)
        ]
        self._threads.append(threading.Thread(target=self._probe, args=(random.Random(seed),), daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _port(self, draw: random.Random) -> int | None:
        """Of one of the workers that run, or None."""
        ports = [event["http_port"] for member in list(self._members) for event in member.events("started")[-1:]]
        return draw.choice(ports) if ports else None

    def _run(self, draw: random.Random) -> None:
        while not self._stopping.is_set():
            port = self._port(draw)
            if port is None:
                time.sleep(0.1)
                continue
            with contextlib.suppress(OSError, http.client.HTTPException):  # the worker was killed, or is asked to go
                kind = draw.choice(("sound", "sound", "sound", "list", "poison", "wrong", "garbage", "gone", "silent"))
                if kind in {"gone", "silent"}:
                    self._leave(port, kind, draw)
                else:
                    self._ask(port, kind, draw)

    def _ask(self, port: int, kind: str, draw: random.Random) -> None:
        one = {"text": f"plain call {draw.random()}", "labels": ["a", "b"]}
        bodies: dict[str, object] = {
            "sound": one,
            "list": [one] * 20,
            "poison": one | {"text": f"poison {draw.random()}"},
            "wrong": {"text": "", "labels": ["a"]},
        }
        body = b"[" * 5000 if kind == "garbage" else json.dumps(bodies[kind]).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        self.statuses[kind, answer.status] += 1
        if answer.status >= 500 and answer.status != 503 and kind != "poison":
            self.wrong.append(f"{kind}: {answer.status} {said[:200]!r}")

    def _leave(self, port: int, kind: str, draw: random.Random) -> None:
        """Ask and go away before the answer, or say half of it and keep silent for a while."""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(_HEAD + (b'{"text": "plain", "labels": ["a"]}'.ljust(100) if kind == "gone" else b""))
            time.sleep(draw.uniform(0.0, 0.05))

    def _probe(self, draw: random.Random) -> None:
        """Whether it is alive, and how soon it says so."""
        while not self._stopping.is_set():
            port = self._port(draw)
            began_s = time.monotonic()
            with contextlib.suppress(OSError, http.client.HTTPException, TypeError):
                connection = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=30)
                with contextlib.closing(connection):
                    connection.request("GET", "/healthz")
                    status = connection.getresponse().status
                self.statuses["healthz", status] += 1
                if (took_s := time.monotonic() - began_s) > PROBE_S:
                    self.wrong.append(f"healthz took {took_s:.1f} s")
            time.sleep(0.1)


@contextlib.contextmanager
def http_load(members: Sequence[WorkerProcess], seed: int) -> Iterator[HttpLoad]:
    """Load on these workers, whoever they are at the moment."""
    load = HttpLoad(members, seed)
    try:
        yield load
    finally:
        load.stop()
