"""Connections that send slowly, or never, or do not read: they hold nobody up, and cost a bounded number of places."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from pathlib import Path
from typing import cast

import pytest

from tests.unit.http.served import served, until
from worker.http.connections import BoundedProtocol, Door

HEAD = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("sent", [b"", b"GET /hea", HEAD])
def test_hundreds_of_silent_connections_keep_no_probe_waiting(sent: bytes) -> None:
    with served(max_connections="64", receive_timeout_s="60") as found, contextlib.ExitStack() as held:
        for _ in range(300):
            held.enter_context(found.connect(sent))
        for path in ("/healthz", "/readyz", "/metrics"):
            assert found.ask(path).status in {200, 503}
        if sent != HEAD:
            assert found.ask("/v1/embed", {"text": "a"}).status == 200
        else:  # those hold all places for requests whose head is here, and no more
            assert found.ask("/v1/embed", {"text": "a"}).status == 429


def test_a_probe_finds_a_place_while_all_others_are_being_refused() -> None:
    """Between the head of a request and its refusal a connection is not silent, and nobody may take its place."""
    door = Door(64, timeout_s=60)
    ended: list[int] = []
    crowd = [cast("BoundedProtocol", _Numbered(number, ended)) for number in range(200)]
    for connection in crowd[:64]:
        assert door.enter(connection)
        door.silent(connection)
        door.asked(connection)
    for connection in crowd[64:]:
        assert door.enter(connection)
        door.silent(connection)
    assert ended == list(range(64, 200 - 16))  # the longest silent of the newcomers, and no request in hand
    assert door.open == 64 + 16


class _Numbered:
    """As much of a connection as the door sees."""

    def __init__(self, number: int, ended: list[int]) -> None:
        self._number = number
        self._ended = ended

    def abort(self) -> None:
        self._ended.append(self._number)


@pytest.mark.parametrize(("sent", "said"), [(b"", b""), (b"GET /hea", b"HTTP/1.1 408 "), (HEAD, b"HTTP/1.1 408 ")])
def test_a_request_that_does_not_arrive_in_time_is_not_waited_for(sent: bytes, said: bytes) -> None:
    with served(receive_timeout_s="0.2") as found, found.connect(sent) as connection:
        received = b""
        while part := connection.recv(4096):
            received += part
        assert received.startswith(said)
        assert bool(received) == bool(said)


def test_a_connection_that_sends_a_byte_now_and_then_is_late_all_the_same() -> None:
    with served(receive_timeout_s="0.3") as found, found.connect() as connection:
        with contextlib.suppress(OSError):
            for byte in b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"a" * 10_000:
                connection.sendall(bytes([byte]))
                connection.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(4096):
                        break
        until(lambda: is_closed(connection), "it is closed")


def test_an_answer_that_is_not_read_is_dropped() -> None:
    with served(receive_timeout_s="0.3", max_body_bytes="4000000", max_items="10000", max_waiting="10000") as found:
        texts = ",".join('{"text":"%s"}' % ("a" * 300) for _ in range(10_000)).encode()
        head = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            len(texts) + 2
        )
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", found.endpoint.port))
        connection.sendall(head + b"[" + texts + b"]")
        until(lambda: found.counted("http_requests_total", path="/v1/embed", status="200") > 0, "it is given up")
        until(lambda: found.endpoint._server.door.open == 0, "its place is free")
        connection.close()
        assert found.ask("/v1/embed", {"text": "a"}).status == 200


def test_what_is_no_http_is_told_so() -> None:
    with served() as found, found.connect(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") as connection:
        connection.sendall(b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_an_answer_is_sent_at_once() -> None:
    """Without TCP_NODELAY the second half of one waits for the client's delayed acknowledgement of the first."""
    with served() as found, found.connect(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n") as connection:
        assert connection.recv(100)
        (accepted,) = found.endpoint._server.door._open
        assert accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_several_requests_on_one_connection_are_answered_in_order() -> None:
    with served() as found, found.connect(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 3) as connection:
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            part = connection.recv(4096)
            assert part, received
            received += part


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_ten_thousand_silent_connections_and_hundred_megabyte_bodies_keep_no_probe_waiting() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 24_000), hard))
    before = _resident_bytes()
    most_s = 0.0
    try:
        with served() as found, contextlib.ExitStack() as held:
            for number in range(10_000):
                connection = held.enter_context(found.connect())
                with contextlib.suppress(OSError):  # it has made room for others already
                    connection.sendall((b"", b"GET /hea", HEAD, b"GET / HTTP/1.1\r\nX: ")[number % 4])
                if number % 250 == 0:
                    began_s = time.monotonic()
                    assert found.ask("/healthz").status == 200
                    most_s = max(most_s, time.monotonic() - began_s)
            for _ in range(20):
                with contextlib.suppress(OSError):
                    answer = found.ask("/v1/embed", b"a" * 100_000_000)
                    assert answer.status in {413, 429}
            began_s = time.monotonic()
            assert found.ask("/metrics").status == 200
            most_s = max(most_s, time.monotonic() - began_s)
            assert most_s < 1.0
            assert found.endpoint._server.door.open <= 512 + 512 // 4
            assert _resident_bytes() - before < 400_000_000  # of which the client's body is the most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
