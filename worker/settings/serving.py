"""Section ``http``."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from worker.rules import addresses
from worker.settings.section import Section, listed

# What may stand behind "Bearer" (RFC 6750).
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_LEAST_TOKEN_CHARS: Final = 16
OPEN: Final = (
    "it answers whoever reaches it: set http.tokens, or http.host to 127.0.0.1, or say http.insecure = true if "
    "something else keeps strangers out"
)


class HttpSettings(Section):
    """Where the worker is watched, and asked for answers that need not go over Kafka."""

    host: str = "127.0.0.1"
    """Address that /healthz, /readyz, /metrics, the page and the inference API are served on."""
    port: int = Field(default=9400, ge=0, le=65_535)
    """Its port; 0 picks a free one and logs it."""
    inference: bool = False
    """Whether classify, entail and embed are answered over HTTP too; `serve` implies it."""
    tokens: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(listed)] = Field(default=(), repr=False)
    """Bearer tokens; with one of them a caller may ask for inference and see the page. Health and metrics need none."""
    insecure: bool = False
    """Serve inference and the page without tokens on an address that other machines reach."""
    share: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The most of the device's work that goes to HTTP while the stream has a backlog."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Bytes of a request's body."""
    max_items: int = Field(default=256, ge=1)
    """Texts in one request."""
    max_waiting: int = Field(default=1024, ge=1)
    """Texts that wait for the device; what comes on top is answered 429."""
    max_connections: int = Field(default=512, ge=32, le=65_536)
    """Open connections, beside those being refused. A newcomer takes the place of the one silent longest."""
    receive_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time in seconds in which a request must have arrived, and an answer been read."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for an answer, in seconds; then it is 503."""

    @field_validator("tokens")
    @classmethod
    def _sendable(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, token in enumerate(value, 1):
            text = token.get_secret_value()
            if len(text) < _LEAST_TOKEN_CHARS or not _TOKEN.fullmatch(text):
                raise ValueError(
                    f"entry {number} is no bearer token: {_LEAST_TOKEN_CHARS} or more of A-Z a-z 0-9 . _ ~ + / -, as "
                    "`openssl rand -hex 32` writes them"
                )
        return value

    @model_validator(mode="after")
    def _guarded(self) -> HttpSettings:
        if self.inference and not self.is_guarded:
            raise ValueError(f"http.inference with http.host = {self.host!r}: {OPEN}")
        return self

    @property
    def is_guarded(self) -> bool:
        """Whether strangers are kept from inference and the page, or the operator wants them there."""
        return bool(self.tokens) or self.insecure or addresses.is_loopback(self.host)
