"""Section ``log``."""

from __future__ import annotations

from typing import Literal

from worker.settings.section import Section


class LogSettings(Section):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below it are not written."""
    format: Literal["auto", "json", "console"] = "auto"
    """How lines look; auto: console on a terminal, json elsewhere."""
