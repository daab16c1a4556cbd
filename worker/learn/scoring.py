"""Examples through the engine: as requests of a stream would go, save that every label keeps its score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from worker.avro import json_request
from worker.avro.request import Defaults, Limits
from worker.avro.request import request as checked_request
from worker.errors import Rejection, SettingsError
from worker.inference.descent import FOLLOWED
from worker.inference.scores import passes
from worker.learn.examples import Example, unexpected
from worker.learn.quality import Answer
from worker.messages import Classification, Encoded, LabelScore, Outcome, Request, Work

_AT_ONCE: Final = 64


class Engine(Protocol):
    """The part of `worker.inference.engine.Engine` that is used."""

    def encode(self, request: Request) -> Encoded:
        """Tokens of a request. Raises Rejection."""

    def run(self, requests: Sequence[tuple[Request, Encoded]]) -> tuple[list[Outcome], Work]:
        """Outcomes in the order of the requests. Raises Rejection."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An example and the request that a stream would make of it."""

    example: Example
    request: Request


@dataclass(frozen=True, slots=True)
class Scored:
    """An example, its request, and every label that has a score."""

    example: Example
    request: Request
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True)
class Unscored:
    """An example that the model could not score, and why."""

    example: Example
    why: str


def asked(examples: Sequence[Example], defaults: Defaults, limits: Limits) -> list[Asked]:
    """The requests of examples, by the rules of the stream.

    Raises:
        SettingsError: an example asks for what no request may, or expects what is no candidate.
    """
    found = []
    for example in examples:
        try:
            request = checked_request(json_request.request(example.fields), defaults, limits)
        except Rejection as refused:
            raise SettingsError(f"{example.place}: {refused}") from None
        if problem := unexpected(example.expected, request.labels, is_apart=request.is_apart):
            raise SettingsError(f"{example.place}: {problem}")
        found.append(Asked(example, request))
    return found


def scored(engine: Engine, wanted: Sequence[Asked], max_tokens: int) -> Iterator[list[Scored | Unscored]]:
    """Score examples, batch by batch, in their order. What the caller has when it stops is whole.

    Args:
        engine: What computes.
        wanted: The examples.
        max_tokens: Of a batch, as ``batch.max_tokens``; the first example is always taken.
    """
    batch: list[tuple[Asked, Request, Encoded]] = []
    refused: list[Scored | Unscored] = []
    tokens = 0
    for one in wanted:
        request = _whole(one.request)
        try:
            encoded = engine.encode(request)
        except Rejection as error:
            refused.append(Unscored(one.example, str(error)))
            continue
        if batch and (tokens + encoded.tokens > max_tokens or len(batch) >= _AT_ONCE):
            yield refused + _run(engine, batch)
            batch, refused, tokens = [], [], 0
        batch.append((one, request, encoded))
        tokens += encoded.tokens
    if batch or refused:
        yield refused + _run(engine, batch)


def flat(request: Request) -> Request:
    """A request of which every node of a tree is scored, each on its own."""
    return replace(request, taxonomy=None, calibrator=None)


def answer(one: Scored) -> Answer:
    """What was decided, as the stream decides: by thresholds after precedence, and by 0.5 where there are none."""
    request, is_apart = one.request, one.request.is_apart
    otherwise = FOLLOWED if is_apart else 0.0
    judged = tuple(label.score if label.calibrated is None else label.calibrated for label in one.labels)
    index = {label: i for i, label in reversed(list(enumerate(request.labels)))}
    if request.taxonomy is not None:
        predicted = [label.label for label in one.labels]  # it was descended by the thresholds already
    else:
        predicted = [
            label.label
            for label, score in zip(one.labels, judged, strict=True)
            if passes(request, index[label.label], score, label.neutral, otherwise)
        ]
    if not is_apart:
        best = one.labels[0].label if one.labels else None  # which has to pass itself: no other takes its place
        predicted = predicted[:1] if predicted[:1] == [best] else []
    return Answer(
        labels=tuple(label.label for label in one.labels),
        scores=judged,
        predicted=tuple(predicted),
        expected=one.example.expected,
        is_apart=is_apart,
        language=request.detected or one.example.language,
        thresholds=tuple(_threshold(request, index[label.label], otherwise) for label in one.labels),
        raw=() if all(label.calibrated is None for label in one.labels) else tuple(label.score for label in one.labels),
    )


def _threshold(request: Request, index: int, otherwise: float) -> float:
    own = request.thresholds[index] if request.thresholds else None
    if own is not None:
        return own
    return otherwise if request.threshold is None else request.threshold


def _whole(request: Request) -> Request:
    """The request as all its labels keep their scores; a tree is descended by its thresholds as ever."""
    if request.taxonomy is not None:
        return replace(request, top_k=None, evidence=0)
    return replace(request, top_k=None, evidence=0, threshold=None, thresholds=(), abstain_on_neutral=None)


def _run(engine: Engine, batch: Sequence[tuple[Asked, Request, Encoded]]) -> list[Scored | Unscored]:
    if not batch:
        return []
    try:
        outcomes, _ = engine.run([(request, encoded) for _, request, encoded in batch])
    except Rejection as refused:
        if len(batch) == 1:
            return [Unscored(batch[0][0].example, str(refused))]
        return [found for one in batch for found in _run(engine, [one])]
    return [
        Scored(one.example, one.request, outcome.labels)
        for (one, _, _), outcome in zip(batch, outcomes, strict=True)
        if isinstance(outcome, Classification)
    ]
