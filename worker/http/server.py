"""The HTTP server: uvicorn on a thread of its own, with an event loop of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from worker.errors import SettingsError
from worker.http.connections import BoundedProtocol, Door, DoorConfig

log = structlog.stdlib.get_logger(__name__)

THREAD: Final = "http"
_START_TIMEOUT_S: Final = 30.0
_END_TIMEOUT_S: Final = 5.0
# A loop takes in at most so many connections at a time, and so many file descriptors more than `most_connections`.
_ACCEPTED_AT_ONCE: Final = 64
# The kernel's own line in front of that: full, it lets a newcomer wait for a second.
_BACKLOG: Final = 4096


class HttpServer:
    """Serves an application, from construction until `close`.

    Args:
        app: What answers.
        host: Address to listen on; 0.0.0.0 or :: for all.
        port: 0 picks a free one, see `port`.
        most_connections: Open at a time.
        timeout_s: In which a request must have arrived, and in which an answer must be read.
        beside: What goes on on the same loop until the end.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        most_connections: int,
        timeout_s: float,
        beside: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._beside = beside
        self._socket = _listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        config = DoorConfig(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="error",  # what strangers send is no news
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            backlog=_ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=int(_END_TIMEOUT_S),
        )
        config.door = self.door = Door(most_connections, timeout_s)
        self._server = uvicorn.Server(config)
        self._started = threading.Event()
        self._crash: BaseException | None = None
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()
        self._started.wait(_START_TIMEOUT_S)
        self.check()

    def check(self) -> None:
        """Raise what ended the thread, if it has ended by itself."""
        if self._crash is not None:
            raise self._crash

    def close(self, first: Callable[[], None]) -> None:
        """Let answers that are on their way end, close all connections and free the port. Twice does no harm.

        ``first`` is called on the server's thread before.
        """
        with suppress(RuntimeError):  # its loop is closed: it has ended
            self.loop.call_soon_threadsafe(first)
        self._server.should_exit = True
        self._thread.join(2 * _END_TIMEOUT_S)
        self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 (re-raised on the main thread by check)
            self._crash = error
        finally:
            self._started.set()
            self.loop.close()

    async def _serve(self) -> None:
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not (self._server.started or serving.done()):  # noqa: ASYNC110 (uvicorn tells nobody when it begins)
            await asyncio.sleep(0.001)
        self._socket.listen(_BACKLOG)  # uvicorn's own number bounds how many are taken in at a time
        self._started.set()
        beside = asyncio.ensure_future(self._beside())
        try:
            await serving
        finally:
            beside.cancel()


def _listening(host: str, port: int) -> socket.socket:
    try:
        # With the protocol's number: asyncio sends at once (TCP_NODELAY) only where a socket says that it is TCP's, and
        # else the second half of an answer waits 40 ms for the client to acknowledge the first.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # bind although connections of the former process linger
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise _unusable(host, port, error) from error
    return bound


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
