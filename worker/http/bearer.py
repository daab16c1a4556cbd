"""Who may ask for inference and see the page."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

from starlette.requests import Request

from worker.http.problem import Kind, Problem


class Bearer:
    """Checks the token of a request.

    ``Authorization: Bearer TOKEN`` is for programs. A browser can only ask a person for a name and a password: there
    the token is the password (``Basic``), whatever the name.

    Args:
        tokens: Those that may come in; none: see ``is_guarded``.
        is_guarded: Whether strangers cannot reach us, or are welcome, where there are no tokens.
    """

    def __init__(self, tokens: Sequence[str], *, is_guarded: bool) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._is_guarded = is_guarded

    def require(self, request: Request) -> None:
        """Raise Problem unless the request may come in."""
        if not self._tokens:
            if self._is_guarded:
                return
            raise Problem(
                Kind.FORBIDDEN,
                "set http.tokens, or http.insecure = true if something else keeps strangers out; /healthz, /readyz and "
                "/metrics are for everybody",
            )
        given = _token(request.headers.get("authorization", ""))
        # All of them, whatever the first says: how long it takes tells nothing.
        if not sum(hmac.compare_digest(given, token) for token in self._tokens):
            raise Problem(
                Kind.UNAUTHORIZED,
                "send Authorization: Bearer TOKEN with one of http.tokens",
                headers={"WWW-Authenticate": 'Bearer realm="xnli-worker", Basic realm="xnli-worker", charset="UTF-8"'},
            )


def _token(header: str) -> bytes:
    scheme, _, rest = header.partition(" ")
    given = rest.strip().encode("utf-8", "replace")
    if scheme.lower() == "bearer":
        return given
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
