"""Sections of how the worker is watched: ``http`` and ``log``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.settings.section import Section


class HttpSettings(Section):
    """Where /healthz, /readyz and /metrics are served. Port 0 picks a free one and logs it."""

    host: str = "127.0.0.1"
    port: int = Field(default=9400, ge=0, le=65_535)


class LogSettings(Section):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
