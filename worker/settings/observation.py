"""Sections of how the worker is watched: ``http`` and ``log``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.settings.section import Section


class HttpSettings(Section):
    """Where /healthz, /readyz and /metrics are served. Port 0 picks a free one and logs it."""

    host: str = "127.0.0.1"
    """Address that /healthz, /readyz and /metrics are served on."""
    port: int = Field(default=9400, ge=0, le=65_535)
    """Its port; 0 picks a free one and logs it."""


class LogSettings(Section):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below it are not written."""
    format: Literal["auto", "json", "console"] = "auto"
    """How lines look; auto: console on a terminal, json elsewhere."""
