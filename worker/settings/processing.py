"""Sections of how records are processed: ``batch``, ``delivery``, ``retry``, ``dead_letter``, ``limits``, ``cache``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.settings.section import Section


class BatchSettings(Section):
    """What closes a batch, whichever comes first."""

    max_messages: int = Field(default=256, ge=1, le=100_000)
    """Messages in a batch."""
    max_tokens: int = Field(default=16_384, ge=16)
    """Tokens in a batch, and in one forward."""
    max_wait_ms: int = Field(default=50, ge=0, le=60_000)
    """Longest wait of a batch for more messages, in milliseconds."""
    wait_for_more: bool = True
    """Wait even while the device is idle, for fuller batches. False: an idle device takes what is there."""


class DeliverySettings(Section):
    """The guarantee results are delivered with."""

    guarantee: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """What is promised of each request: "exactly_once", which needs transactions, or "at_least_once"."""


class RetrySettings(Section):
    """How often and how patiently a record that failed is tried again. ``jitter`` 1 is full jitter, 0 none."""

    max_attempts: int = Field(default=5, ge=1, le=1000)
    """Attempts before a record becomes a dead letter."""
    initial_ms: int = Field(default=200, ge=1)
    """First wait, in milliseconds."""
    max_ms: int = Field(default=30_000, ge=1)
    """Longest wait, in milliseconds."""
    multiplier: float = Field(default=2.0, ge=1.0, le=100.0)
    """How much longer each wait is than the one before."""
    jitter: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of a wait that is drawn by chance: 1 is full jitter, 0 none."""


class DeadLetterSettings(Section):
    """Limits that halt the worker before it turns a broken deployment into a topic full of dead letters."""

    max_consecutive: int | None = Field(default=None, ge=1)
    """Dead letters in a row that halt the worker."""
    max_ratio: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of dead letters among the last messages that halts the worker."""


class LimitSettings(Section):
    """Bounds on one request. ``max_tokens`` is over all its rows. ``max_age_s`` None: requests do not expire."""

    max_text_chars: int = Field(default=100_000, ge=1)
    """Characters of a text."""
    max_labels: int = Field(default=256, ge=1)
    """Labels or hypotheses of a request."""
    max_label_chars: int = Field(default=500, ge=1)
    """Characters of a label or hypothesis."""
    max_message_bytes: int = Field(default=1_048_576, ge=64)
    """Bytes of a message."""
    max_tokens: int = Field(default=262_144, ge=16)
    """Tokens of a request, over all its rows."""
    max_age_s: float | None = Field(default=None, gt=0)
    """Age in seconds at which a request expires; without it requests do not expire."""


class CacheSettings(Section):
    """``max_pairs`` premise-hypothesis pairs whose logits are kept; 0 is off."""

    max_pairs: int = Field(default=0, ge=0)
    """Pairs whose logits are kept; 0: off."""
