"""Sections of how records are processed: ``batch``, ``delivery``, ``retry``, ``dead_letter``, ``limits``, ``cache``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.settings.section import Section


class BatchSettings(Section):
    """What closes a batch, whichever comes first."""

    max_messages: int = Field(default=256, ge=1, le=100_000)
    max_tokens: int = Field(default=16_384, ge=16)
    max_wait_ms: int = Field(default=50, ge=0, le=60_000)


class DeliverySettings(Section):
    """The guarantee results are delivered with."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"


class RetrySettings(Section):
    """How often and how patiently a record that failed is tried again. ``jitter`` 1 is full jitter, 0 none."""

    max_attempts: int = Field(default=5, ge=1, le=1000)
    initial_ms: int = Field(default=200, ge=1)
    max_ms: int = Field(default=30_000, ge=1)
    multiplier: float = Field(default=2.0, ge=1.0, le=100.0)
    jitter: float = Field(default=1.0, ge=0.0, le=1.0)


class DeadLetterSettings(Section):
    """Limits that halt the worker before it turns a broken deployment into a topic full of dead letters."""

    max_consecutive: int | None = Field(default=None, ge=1)
    max_ratio: float | None = Field(default=None, gt=0.0, le=1.0)


class LimitSettings(Section):
    """Bounds on one request. ``max_tokens`` is over all its rows. ``max_age_s`` None: requests do not expire."""

    max_text_chars: int = Field(default=100_000, ge=1)
    max_labels: int = Field(default=256, ge=1)
    max_label_chars: int = Field(default=500, ge=1)
    max_message_bytes: int = Field(default=1_048_576, ge=64)
    max_tokens: int = Field(default=262_144, ge=16)
    max_age_s: float | None = Field(default=None, gt=0)


class CacheSettings(Section):
    """``max_pairs`` premise-hypothesis pairs whose logits are kept; 0 is off."""

    max_pairs: int = Field(default=0, ge=0)
