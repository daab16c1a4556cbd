"""Section ``label_sets``."""

from __future__ import annotations

from pydantic import Field

from worker.settings.section import Section


class LabelSetSettings(Section):
    """The sets of the topic ``topics.label_sets``."""

    wait_s: float = Field(default=5.0, ge=0, le=600, allow_inf_nan=False)
    """Longest wait of a request for the set that it names, in seconds; then it is invalid."""
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=4096)
    """Bytes that all sets may take in memory; a set beyond that is refused, and the log says so."""
