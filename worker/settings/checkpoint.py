"""Section ``model``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from worker.messages import LongText
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template
from worker.settings.section import Section, listed


class ModelSettings(Section):
    """The checkpoint, the device it runs on, and what a request means that does not say."""

    name: str = Field(min_length=1)
    revision: str | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    max_length: int | None = Field(default=None, ge=8)
    hypothesis_template: str = "This example is {}."
    labels: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(listed)] = None
    default_language: str | None = None
    long_text: LongText = LongText.TRUNCATE
    pooling: Literal["auto", "CLS", "MEAN"] = "auto"  # auto: as the checkpoint says, else MEAN
    normalize: bool = True
    self_test: Literal["refuse", "warn", "off"] = "refuse"
    # Of torch on the CPU; None: as many as the quota of the cgroup, the CPUs allowed and OMP_NUM_THREADS let it have.
    threads: int | None = Field(default=None, ge=1, le=1024)
    # A forward that takes longer means a device that hangs: the worker ends, for a supervisor to restart.
    timeout_s: float = Field(default=300.0, gt=0)

    @field_validator("hypothesis_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if not is_template(value):
            raise ValueError(TEMPLATE_RULE)
        return value
