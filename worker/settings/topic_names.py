"""Section ``topics``."""

from __future__ import annotations

from pydantic import field_validator, model_validator

from worker.rules import names
from worker.settings.section import Seconds, Section, Topic, Topics


class TopicSettings(Section):
    """Topic names. ``retry`` holds delays in seconds, a topic GROUP.retry.DELAYs each; empty means retry in place."""

    input: Topics = ("xnli.requests",)
    """Topics that requests are read from: one name, or a list."""
    output: Topic = "xnli.results"
    """Topic that results are written to."""
    dead_letter: Topic = "xnli.dead-letters"
    """Topic for requests that cannot be answered."""
    retry: Seconds = ()
    """Delays in seconds, a retry topic for each; empty: retry in place."""
    label_sets: Topic | None = None
    """Compacted topic of label sets that requests may name."""

    @field_validator("input")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one input topic")
        if len(set(value)) != len(value):
            raise ValueError("a topic stands there twice: name each once")
        return value

    @field_validator("retry")
    @classmethod
    def _delays(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if problem := names.delays_problem(value):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _no_loop(self) -> TopicSettings:
        for name, topic in (("output", self.output), ("dead_letter", self.dead_letter)):
            if topic in self.input:
                raise ValueError(
                    f"topics.{name} = {topic!r} is also an input topic: the worker would read what it writes"
                )
        if self.output == self.dead_letter:
            raise ValueError(f"topics.output and topics.dead_letter are both {self.output!r}: give each its own topic")
        if self.label_sets in {*self.input, self.output, self.dead_letter}:
            raise ValueError(f"topics.label_sets = {self.label_sets!r} has another use already: give it its own topic")
        return self
