"""Open connections: at most so many, and none that keeps silent for long.

uvicorn has no time-out for a request that does not arrive and none for an answer that is not read, and what it does
when it has too many connections is to answer 503, health checks included. So here a newcomer takes the place of the
connection that has been silent longest: whoever asks for /healthz sends its request at once and is answered, however
many others hold connections open. Those with a request in hand are bounded below the limit (`worker.http.inference`);
those that are being refused are not, for a moment. So a quarter of the limit is there for newcomers whatever comes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Door:
    """Lets connections in.

    Args:
        most: How many may be open, beside those that are being refused; twice as many never are.
        timeout_s: In which a request must have arrived, and in which an answer must be read.
    """

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most = most
        self._newcomers = most // 4
        self.timeout_s = timeout_s
        self._open: set[BoundedProtocol] = set()
        self._silent: dict[BoundedProtocol, None] = {}  # the first has been silent longest

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def enter(self, connection: BoundedProtocol) -> bool:
        """False if there is no place for a newcomer: every connection has a request in hand."""
        if len(self._open) >= 2 * self._most:
            return False
        # Walked: 64 places, 48 requests in hand, 16 more that are being told "429". A probe comes: it must not be sent
        # away, and the crowd behind it must not take its place before its request is read.
        if len(self._open) >= self._most and len(self._silent) >= self._newcomers:
            longest = next(iter(self._silent))
            self.leave(longest)
            longest.abort()
        self._open.add(connection)
        return True

    def leave(self, connection: BoundedProtocol) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._silent.pop(connection, None)

    def silent(self, connection: BoundedProtocol) -> None:
        """A request is waited for."""
        self._silent[connection] = None

    def asked(self, connection: BoundedProtocol) -> None:
        """The head of a request is here."""
        self._silent.pop(connection, None)


class DoorConfig(uvicorn.Config):
    """uvicorn's configuration, and the door that its connections come through."""

    door: Door


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with `Door` in front of it."""

    def __init__(
        self,
        config: DoorConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._door = config.door
        self._is_in = False
        self._has_begun = False  # part of a request is here
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or end it."""
        super().connection_made(transport)
        self._is_in = self._door.enter(self)
        if self._is_in:
            self._await_request()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place to the next."""
        self._door.leave(self)
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if not self._is_in:
            return
        self._has_begun = True
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer is on its way; another request may follow."""
        self._has_begun = False
        super().on_response_complete()
        if self.transport.is_closing():
            # What is not read by then is never read; and who asks nothing more makes room first.
            self._unread = self.loop.call_later(self._door.timeout_s, self.abort)
            self._door.silent(self)
        else:
            self._await_request()
            self._look()

    def pause_writing(self) -> None:
        """Too much of an answer is not read yet."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._door.timeout_s, self.abort)

    def resume_writing(self) -> None:
        """It is read."""
        super().resume_writing()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self.transport.abort()

    def _await_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._door.timeout_s, self._too_slow)
        self._door.silent(self)

    def _look(self) -> None:
        """Whether the head of a request has arrived: its body is the application's to wait for."""
        if self.cycle is not None and not self.cycle.response_complete and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._door.asked(self)

    def _too_slow(self) -> None:
        if self._has_begun and not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
        self.transport.close()
        self._unread = self.loop.call_later(self._door.timeout_s, self.abort)
