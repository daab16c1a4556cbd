"""Scores of a checkpoint, computed in this process, to hold results of a worker against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import builders
from worker.inference import loading
from worker.inference.engine import Engine
from worker.messages import Classification

# A row's scores differ in their last digits with its neighbours in a forward.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Scores:
    """What one revision gives, by key and label."""

    revision: str
    by_key: Mapping[str, Mapping[str, float]]

    def agrees(self, key: str, given: Mapping[str, float]) -> bool:
        """Whether these are its scores of this text."""
        own = self.by_key[key]
        return all(abs(own[label] - score) < TOLERANCE for label, score in given.items())


def scores(path: Path, texts: Mapping[str, str], labels: Sequence[str]) -> Scores:
    """Compute them as the worker does by default."""
    engine = Engine(loading.load(str(path), progress=False, self_test="off"), max_tokens=16_384)
    found: dict[str, dict[str, float]] = {}
    for key, text in texts.items():
        asked = builders.classify(text, *labels, template="This example is {}.")
        outcomes, _ = engine.run([(asked, engine.encode(asked))])
        (outcome,) = outcomes
        if not isinstance(outcome, Classification):
            raise TypeError(type(outcome))
        found[key] = {scored.label: scored.score for scored in outcome.labels}
    return Scores(engine.identity.revision, found)
