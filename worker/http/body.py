"""Bodies of requests: bounded, read within a time, and parsed as JSON with nothing that JSON does not have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from worker.http.problem import Kind, Problem

# Fields of one object: pydantic reports each that it does not know, and a megabyte of them would make gigabytes.
_MOST_FIELDS: Final = 1000
# What a client that was refused early may still send before its connection is closed: closed at once, it would never
# see why.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 1 << 20
_LINGER_AT_ONCE: Final = 8
_IS_READ: Final = "xnli.body_is_read"
# Bodies and answers in memory, in bodies of the largest size.
_MOST_HELD: Final = 64


class Bodies:
    """Reads bodies, and knows how many bytes of them and of answers are in memory. HTTP thread only.

    Args:
        most_bytes: Of one body.
        timeout_s: In which it must have arrived.
    """

    def __init__(self, most_bytes: int, timeout_s: float) -> None:
        self._most = most_bytes
        self._timeout_s = timeout_s
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[Held]:
        """While a request is in hand. Raises Problem if too much is held already."""
        if self._held > _MOST_HELD * self._most:
            raise Problem(Kind.BUSY, "bodies and answers of other requests fill the memory that is set aside for them")
        held = Held(self)
        try:
            yield held
        finally:
            self._held -= held.bytes

    async def read(self, request: Request, held: Held) -> bytes:
        """The body.

        Raises:
            Problem: it is no JSON by its type, larger than it may be, or late.
            ClientDisconnect: the client went away.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise Problem(Kind.MEDIA_TYPE, f"content-type is {media_type or 'missing'}; send application/json")
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise Problem(Kind.MEDIA_TYPE, f"content-encoding is {encoding}; send the body as it is")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            self._refuse(f"{length} bytes")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                async for part in request.stream():
                    parts.append(part)
                    held.add(len(part))
                    if held.bytes > self._most:
                        self._refuse(f"more than {self._most} bytes")
        except TimeoutError:
            raise Problem(Kind.TOO_SLOW, f"the body was not here within {self._timeout_s:g} s") from None
        request.scope[_IS_READ] = True
        return b"".join(parts)

    def _refuse(self, size: str) -> NoReturn:
        raise Problem(
            Kind.TOO_LARGE, f"the body has {size}, http.max_body_bytes is {self._most}; send less or raise the limit"
        )


class Held:
    """Bytes of one request in memory: its body, then its answer."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.bytes = 0

    def add(self, count: int) -> None:
        """So many more."""
        self.bytes += count
        self._bodies._held += count  # noqa: SLF001 (of this module)


class Lingering:
    """Sends refusals to clients that may still be sending. HTTP thread only."""

    def __init__(self) -> None:
        self._now = 0

    async def send(self, refusal: Response, request: Request, send: Send) -> None:
        """Send a refusal, and throw away for a while what still comes."""
        if request.scope.get(_IS_READ) or self._now >= _LINGER_AT_ONCE:
            await refusal(request.scope, request.receive, send)
            return
        self._now += 1
        try:
            await send({"type": "http.response.start", "status": refusal.status_code, "headers": refusal.raw_headers})
            await send({"type": "http.response.body", "body": bytes(refusal.body), "more_body": True})
            left = _LINGER_BYTES
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while left > 0:
                        message = await request.receive()
                        left -= len(message.get("body", b""))
                        if message["type"] != "http.request" or not message.get("more_body", False):
                            break
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._now -= 1


def parsed(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        Problem: it is none, or has more fields than any request has.
    """
    try:
        found = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise Problem(Kind.MALFORMED, "it is nested too deeply; a request is an object with values and lists") from None
    except ValueError as error:  # UnicodeDecodeError and a number of 5,000 digits among them
        raise Problem(Kind.MALFORMED, f"{str(error)[:200]}; send JSON in UTF-8") from None
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, dict):
            for name, fields in (("an object", item), *item.items()):
                if isinstance(fields, dict) and len(fields) > _MOST_FIELDS:
                    raise Problem(
                        Kind.TOO_LARGE, f"{name[:100]} has {len(fields)} fields; at most {_MOST_FIELDS} are read"
                    )
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
