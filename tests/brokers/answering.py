"""A small HTTP server that answers as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server at the address given, which calls ``answer(handler, body)`` for each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        do_POST = do_GET  # noqa: N815 (the base class's name)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def redirecting(status: int, to: str) -> Answer:
    """Sends whoever asks on to ``to``, with the path that was asked for."""

    def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Location", to + handler.path)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer
