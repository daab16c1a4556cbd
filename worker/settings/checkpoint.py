"""Section ``model``."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from worker.messages import LongText
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template
from worker.settings.section import Section, listed

_AUTO: Final = "auto"


class ModelSettings(Section):
    """The checkpoint, the device it runs on, and what a request means that does not say."""

    name: str = Field(min_length=1)
    """A hub id ("owner/name"), a directory, or "demo", the small checkpoint that comes with the worker."""
    revision: str | None = None
    """The commit of the hub's repository: pin it, results carry it."""
    device: str = "auto"
    """Where it computes: "auto", "cpu", "cuda" or "cuda:N"."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "int4"] = "auto"
    """What it computes in; auto: the fastest that keeps the scores."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens in one sequence; by default as many as the model has positions for."""
    hypothesis_template: str = "This example is {}."
    """The hypothesis of a label, for requests without a template."""
    labels: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(listed)] = None
    """Class names in the order of the logits, for checkpoints that do not say."""
    default_language: str | None = None
    """The language of requests that name none; "auto" detects it. (A model with language embeddings needs one.)"""
    long_text: LongText = LongText.TRUNCATE
    """What becomes of texts longer than the window: TRUNCATE, WINDOW_MAX or WINDOW_MEAN."""
    pooling: Literal["auto", "CLS", "MEAN"] = "auto"
    """How token states become a vector; auto: as the checkpoint says, else MEAN."""
    normalize: bool = True
    """Whether vectors have length 1."""
    self_test: Literal["refuse", "warn", "off"] = "refuse"
    """What a checkpoint that fails on sure pairs leads to."""
    calibration: str | None = None
    """A calibration file, or a folder of them, by xnli-worker calibrate; its scores stand beside the raw ones."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads on the CPU; by default what the cgroup's quota, the CPUs allowed and OMP_NUM_THREADS let it have."""
    # A forward that takes longer means a device that hangs: the worker ends, for a supervisor to restart.
    timeout_s: float = Field(default=300.0, gt=0)
    """Longest time of one forward, in seconds; then the worker ends, for a supervisor to restart."""
    reload: Literal["off", "signal", "watch"] = "off"
    """When it is loaded anew: on SIGHUP ("signal"), and when its directory changes ("watch"); off: SIGHUP drains."""

    shadow: str | None = Field(default=None, min_length=1)
    """A second checkpoint, named like the first, that computes some of the requests of the stream in idle moments."""
    shadow_share: float = Field(default=0.05, gt=0, le=1)
    """The share of the stream's requests that the second checkpoint is to compute."""

    @property
    def detects_language(self) -> bool:
        """Whether the language of requests that name none is detected."""
        return self.default_language == _AUTO

    @property
    def fixed_language(self) -> str | None:
        """The language that the checkpoint is given for requests that name none."""
        return None if self.detects_language else self.default_language

    @field_validator("hypothesis_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if not is_template(value):
            raise ValueError(TEMPLATE_RULE)
        return value
