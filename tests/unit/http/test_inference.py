"""Bounds: what comes on top is refused at once, who goes away frees their work, and an end answers what is in hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.http.served import AT_ONCE, Answer, Engine, Served, idle, served, until
from worker.messages import ModelIdentity
from worker.pipeline.served_model import ServedModel

WAITS = {"text": "wait"}
HEAD = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


def body(text: str) -> bytes:
    content = json.dumps({"text": text}).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content


class Asking:
    """A request on a thread of its own."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._found: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._found.append(ask()), daemon=True)
        self._thread.start()

    @property
    def answer(self) -> Answer:
        self._thread.join(30)
        return self._found[0]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    with served(max_waiting="2") as found:
        computing = Asking(lambda: found.ask("/v1/embed", WAITS))
        found.engine.begun.wait(20)
        waiting = Asking(lambda: found.ask("/v1/embed", [WAITS, WAITS]))
        until(lambda: len(found.calls) == 2, "two wait")
        refused = found.ask("/v1/embed", {"text": "a"})
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json["type"].endswith(":busy")
        assert found.ask("/healthz").status == 200
        found.engine.go.set()
        assert computing.answer.status == waiting.answer.status == 200


def test_many_that_wait_share_a_run_when_the_device_is_free() -> None:
    with served() as found:
        first = Asking(lambda: found.ask("/v1/embed", WAITS))
        found.engine.begun.wait(20)
        others = [Asking(lambda: found.ask("/v1/embed", {"text": "a"})) for _ in range(5)]
        until(lambda: len(found.calls) == 5, "five wait")
        found.engine.go.set()
        assert {one.answer.status for one in [first, *others]} == {200}
        assert found.engine.runs == [["wait"], ["a"] * 5]


def test_a_client_that_goes_away_frees_its_work() -> None:
    with served(max_waiting="1") as found:
        computing = Asking(lambda: found.ask("/v1/embed", WAITS))
        found.engine.begun.wait(20)
        with found.connect(body("never computed")):
            until(lambda: len(found.calls) == 1, "it waits")
        until(lambda: len(found.calls) == 0, "its place is free")
        another = Asking(lambda: found.ask("/v1/embed", {"text": "a"}))
        until(lambda: len(found.calls) == 1, "the next one waits in its place")
        found.engine.go.set()
        assert computing.answer.status == another.answer.status == 200
        assert ["never computed"] not in found.engine.runs
        until(lambda: found.counted("http_requests_total", path="/v1/embed", status="499") == 1, "it is counted")


def test_who_goes_away_while_it_is_computed_troubles_nobody() -> None:
    with served() as found:
        with found.connect(body("wait")):
            found.engine.begun.wait(20)
        until(lambda: found.calls.in_hand == 0, "nobody waits")
        found.engine.go.set()
        assert found.ask("/v1/embed", {"text": "a"}).status == 200


def test_an_answer_that_does_not_come_is_given_up() -> None:
    with served(timeout_s="0.2") as found:
        answer = found.ask("/v1/embed", WAITS)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "http.timeout_s" in answer.json["detail"]


def test_a_drain_answers_what_is_in_hand_and_nothing_else() -> None:
    with served() as found:
        computing = Asking(lambda: found.ask("/v1/embed", WAITS))
        found.engine.begun.wait(20)
        found.endpoint.drain()
        refused = found.ask("/v1/embed", {"text": "a"})
        assert (refused.status, refused.headers["Connection"]) == (503, "close")
        assert found.ask("/healthz").status == 200
        assert not found.endpoint.await_drained(0.05)
        found.engine.go.set()
        assert found.endpoint.await_drained(20)
        assert computing.answer.status == 200


def test_an_end_tells_whoever_still_waits() -> None:
    with served() as found:
        computing = Asking(lambda: found.ask("/v1/embed", WAITS))
        found.engine.begun.wait(20)
        found.endpoint.close()
        answer = computing.answer
        assert (answer.status, answer.json["detail"]) == (503, "the worker is ending")


@pytest.mark.parametrize(
    ("headers", "sent", "status"),
    [
        ({"Content-Type": "text/plain"}, b'{"text": "a"}', 415),
        ({"Content-Encoding": "gzip"}, b'{"text": "a"}', 415),
        ({"Content-Length": "100000000"}, b"", 413),
        ({}, b'{"text": "' + b"a" * 5000 + b'"}', 413),
        ({}, b"{", 400),
        ({}, b"\xff", 400),
        ({}, b'{"text": NaN}', 400),
        ({}, b"[" * 3000, 400),
        ({}, b"1" * 4400, 413),
    ],
)
def test_bodies_that_are_not_read(headers: dict[str, str], sent: bytes, status: int, small: Served) -> None:
    answer = small.ask("/v1/embed", sent, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.body


@pytest.fixture(scope="module")
def small() -> Any:
    with served(max_body_bytes="4096", receive_timeout_s="0.3") as found:
        yield found


def test_a_body_without_end_is_cut_off(small: Served) -> None:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with small.connect(head) as connection:
        for _ in range(10):
            connection.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(small: Served) -> None:
    with small.connect(body("a")[:-3]) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
    assert small.ask("/v1/embed", {"text": "a"}).status == 200


def test_bodies_of_all_together_are_bounded() -> None:
    with served(max_body_bytes="1024", max_connections="512") as found:
        half = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n"
        held = [found.connect(half + b" " * 1000) for _ in range(80)]
        until(lambda: found.ask("/v1/embed", {"text": "a"}).status == 429, "the memory set aside is full")
        for connection in held:
            connection.close()
        until(lambda: found.ask("/v1/embed", {"text": "a"}).status == 200, "it is free again")


def test_before_the_end_nothing_is_left_behind() -> None:
    with idle() as found:
        assert found.endpoint.await_drained(0)


def test_after_a_swap_answers_name_the_model_that_computed_them() -> None:
    with idle() as found:
        found.health.model_loaded()
        former, following = Engine(), Engine()
        following.identity = ModelIdentity("scripted", "2")
        swapped = ServedModel(former)
        inference = found.endpoint.compute(swapped, AT_ONCE)
        try:
            first = Asking(lambda: found.ask("/v1/embed", WAITS))
            assert former.begun.wait(20)
            second = Asking(lambda: found.ask("/v1/embed", {"text": "waits with the tokens of the former"}))
            until(lambda: len(found.calls) == 1, "the second one to wait")
            swapped.offer(following)
            former.go.set()
            assert [asked.answer.json["model"]["revision"] for asked in (first, second)] == ["1", "2"]
            assert following.runs == [["waits with the tokens of the former"]]
        finally:
            former.go.set()
            inference.stop(5.0)
