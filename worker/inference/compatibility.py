"""Whether a checkpoint may take the place of another while requests are under way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worker.errors import CheckpointError
from worker.inference.model import Checkpoint
from worker.inference.precision import Precision
from worker.messages import ModelIdentity, Pooling


@dataclass(frozen=True, slots=True)
class Facts:
    """What is remembered of a checkpoint whose weights may be gone. ``weights_bytes`` is what they take in memory."""

    identity: ModelIdentity
    device: torch.device
    precision: Precision
    classifies: bool
    languages: frozenset[str]
    pooling: Pooling
    family: str
    max_length: int
    hidden_size: int
    weights_bytes: int


def facts_of(checkpoint: Checkpoint) -> Facts:
    """What a checkpoint is."""
    return Facts(
        identity=checkpoint.identity,
        device=checkpoint.device,
        precision=checkpoint.precision,
        classifies=checkpoint.order is not None,
        languages=frozenset(checkpoint.languages),
        pooling=checkpoint.pooling,
        family=checkpoint.family,
        max_length=checkpoint.max_length,
        hidden_size=checkpoint.hidden_size,
        weights_bytes=sum(weight.nbytes for weight in checkpoint.model.parameters()),
    )


def require_compatible(serving: Facts, following: Facts) -> None:
    """Refuse a checkpoint by which a request that is valid now would mean something else, or be refused.

    Another family, window, precision or length of vectors is no such reason: see `changes`.

    Args:
        serving: What serves now.
        following: What is to take its place.

    Raises:
        CheckpointError: it has no classification head, lacks languages, or pools otherwise.
    """
    if serving.classifies and not following.classifies:
        raise CheckpointError(
            f"{_named(following)} has no classification head, and {_named(serving)}, which serves, has one: every "
            "CLASSIFY and ENTAIL would be refused. Put a checkpoint there that was fine-tuned on NLI, or restart the "
            "worker"
        )
    if following.languages and (lost := sorted(serving.languages - following.languages)):
        raise CheckpointError(
            f"{_named(following)} does not know the languages {', '.join(lost)} of {_named(serving)}, which serves: "
            "requests in them would be refused. Put a checkpoint there that knows them, or restart the worker"
        )
    if serving.pooling is not following.pooling:
        raise CheckpointError(
            f"{_named(following)} pools by {following.pooling}, {_named(serving)}, which serves, by {serving.pooling}: "
            "vectors of requests that name no pooling would change their meaning. Set model.pooling, or restart the "
            "worker"
        )


def changes(serving: Facts, following: Facts) -> dict[str, str]:
    """What else differs, for the log: the name of each fact, and its two values as ``A -> B``."""
    facts = {
        "family": (serving.family, following.family),
        "max_length": (serving.max_length, following.max_length),
        "hidden_size": (serving.hidden_size, following.hidden_size),
        "precision": (serving.precision, following.precision),
    }
    return {name: f"{former} -> {now}" for name, (former, now) in facts.items() if former != now}


def _named(facts: Facts) -> str:
    return f"{facts.identity.name} at {facts.identity.revision}"
