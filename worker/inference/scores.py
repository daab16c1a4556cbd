"""Logits and token states become outcomes. The rules of zero-shot classification stand here and nowhere else.

The rule is that of Yin et al., "Benchmarking Zero-shot Text Classification" (2019), in the form that transformers'
``ZeroShotClassificationPipeline`` made common: each label becomes a hypothesis, and

- single label: the scores are the softmax, over the labels, of the entailment logit;
- multi-label, or one label alone: each score is the softmax of (contradiction, entailment), taken at entailment.

The pipeline guesses the contradiction class by its position; here all classes are found by name (`LabelOrder`). All
arithmetic is float64 with the maximum subtracted first, so that no logit overflows. Equal scores keep the request's
order.

A label passes if its score reaches its threshold and its neutral probability stays below ``abstain_on_neutral``. Where
a calibration knows the label, the calibrated score is compared. Labels are ordered by the score all the same: those
that are not calibrated have nothing else.

Several windows of a long text become one row of logits per hypothesis *before* any rule is applied, so that the score
and the three probabilities of a label always describe the same logits:

- WINDOW_MAX takes the logits of the window that gives the hypothesis the highest probability of entailment (the first
  of equals). The probability chooses, not the logit, because adding a constant to all logits of a window changes the
  logit but not what the window says.
- WINDOW_MEAN takes the mean of the logits over the windows. The probabilities are then the normalised geometric mean of
  the windows' own, as if each window gave independent evidence of equal weight.

An embedding over several windows is the mean of the windows' vectors, weighted by their tokens. With MEAN pooling that
is the mean over all tokens read, where a token in an overlap counts in each window. Under WINDOW_MAX it is the largest
value of each component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.errors import Reason, Rejection
from worker.messages import (
    Classification,
    Embedding,
    Entailment,
    Judgement,
    LabelScore,
    LongText,
    Request,
    Span,
    Task,
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelOrder:
    """Each class's index among the logits. ``neutral`` is None for a head of two (entailment, not_entailment)."""

    entailment: int
    neutral: int | None
    contradiction: int


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis, with its maximum subtracted first."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


class Judged(NamedTuple):
    """What the model says of several hypotheses, each about the whole text or the windows that count.

    Attributes:
        logits: (hypotheses, 2 or 3), those of entailment first and of contradiction last.
        probabilities: (hypotheses, 3), of entailment, neutral and contradiction.
        windows: (hypotheses,), the window that entails each the most; None where the text has one window.
    """

    logits: Floats
    probabilities: Floats
    windows: npt.NDArray[np.intp] | None


def judge(logits: npt.NDArray[np.float32], windows: int, long_text: LongText, order: LabelOrder) -> Judged:
    """Name the classes and put a text's windows together.

    Args:
        logits: (hypotheses * windows, classes); row ``h * windows + w`` is hypothesis ``h`` over window ``w``.
        windows: Number of windows the text was cut into, at least 1.
        long_text: How windows become one.
        order: Which class is which.

    Raises:
        Rejection: The model gave infinities or NaN for this request; a result must not carry them.
    """
    # From here on the classes are (entailment, neutral, contradiction), or (entailment, contradiction).
    named = [order.entailment, order.contradiction]
    if order.neutral is not None:
        named.insert(1, order.neutral)
    classes = _finite(logits).reshape(-1, windows, logits.shape[1])[:, :, named]
    best: npt.NDArray[np.intp] | None = None
    if windows == 1:
        combined = classes[:, 0]
    else:
        best = softmax(classes)[:, :, 0].argmax(axis=1)
        is_mean = long_text is LongText.WINDOW_MEAN
        combined = np.asarray(classes.mean(axis=1)) if is_mean else classes[np.arange(len(classes)), best]
    probabilities = softmax(combined)
    if order.neutral is None:
        probabilities = np.insert(probabilities, 1, 0.0, axis=-1)
    return Judged(combined, probabilities, best)


def competing(logits: Floats) -> Floats:
    """Scores of labels of which one holds, (hypotheses,), of `Judged.logits`. One alone is scored `apart`."""
    return apart(logits) if len(logits) == 1 else softmax(logits[:, 0])


def apart(logits: Floats) -> Floats:
    """Scores of labels each by itself, (hypotheses,), of `Judged.logits`."""
    return np.asarray(softmax(logits[:, [0, -1]])[:, 0])


def passes(request: Request, index: int, score: float, neutral: float, otherwise: float = 0.0) -> bool:
    """Whether label ``index`` of a request passes: by its own threshold, else the request's, else ``otherwise``.

    ``score`` is the calibrated one, where there is one.
    """
    threshold = request.thresholds[index] if request.thresholds else None
    if threshold is None:
        threshold = otherwise if request.threshold is None else request.threshold
    if score < threshold:
        return False
    return request.abstain_on_neutral is None or neutral < request.abstain_on_neutral


def calibrated(request: Request, scores: Floats) -> list[float | None] | None:
    """The calibrated scores of all of a request's labels; None where nothing calibrates them."""
    if request.calibrator is None:
        return None
    return request.calibrator(range(len(scores)), scores.tolist())


def ranked(
    request: Request, scores: Floats, neutral: Sequence[float], calibrated: Sequence[float | None] | None = None
) -> list[int]:
    """The labels that pass, by falling score; equal scores in the request's order. ``top_k`` is not applied yet."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    if request.threshold is None and not request.thresholds and request.abstain_on_neutral is None:
        return order
    if calibrated is None:
        return [i for i in order if passes(request, i, scores[i], neutral[i])]
    judged = [score if own is None else own for score, own in zip(scores.tolist(), calibrated, strict=True)]
    return [i for i in order if passes(request, i, judged[i], neutral[i])]


def window_of(request: Request, judged: Judged, spans: Sequence[Span], index: int) -> Span | None:
    """The place of the window that decided for a hypothesis; None where that is the whole text, or not known."""
    if judged.windows is None or not spans or request.long_text is not LongText.WINDOW_MAX:
        return None
    span: Span = spans[int(judged.windows[index])]
    return span


def score(
    request: Request,
    logits: npt.NDArray[np.float32],
    windows: int,
    order: LabelOrder,
    spans: Sequence[Span] = (),
) -> Classification | Entailment:
    """Turn a request's logits into its outcome, where it needs no others.

    Args:
        request: A CLASSIFY or ENTAIL request with at least one hypothesis.
        logits: As `judge` takes them.
        windows: Likewise.
        order: Likewise.
        spans: The windows' places in the text, where they are known.

    Raises:
        Rejection: The model gave infinities or NaN for this request; a result must not carry them.
    """
    judged = judge(logits, windows, request.long_text, order)
    entailment, neutral, contradiction = judged.probabilities.T.tolist()
    if request.task is Task.ENTAIL:
        judgements = tuple(map(Judgement, request.hypotheses, entailment, neutral, contradiction))
        if spans:
            judgements = tuple(
                replace(one, window=window_of(request, judged, spans, i)) for i, one in enumerate(judgements)
            )
        return Entailment(judgements)
    scores = (apart if request.multi_label else competing)(judged.logits)
    probable = calibrated(request, scores)
    kept = ranked(request, scores, neutral, probable)
    shown = kept[: request.top_k]
    labels = tuple(
        LabelScore(request.labels[i], float(scores[i]), entailment[i], neutral[i], contradiction[i]) for i in shown
    )
    if spans:
        labels = tuple(
            replace(label, window=window_of(request, judged, spans, i)) for i, label in zip(shown, labels, strict=True)
        )
    if probable is not None:
        labels = tuple(replace(label, calibrated=probable[i]) for i, label in zip(shown, labels, strict=True))
    return Classification(labels, multi_label=request.multi_label, abstained=not kept)


def embed(request: Request, vectors: npt.NDArray[np.float32], lengths: npt.NDArray[np.intp]) -> Embedding:
    """Turn the pooled token states of a text's windows into its embedding.

    Args:
        request: An EMBED request.
        vectors: (windows, hidden size), pooled as the request asks, not normalised.
        lengths: (windows,), tokens of each window.

    Raises:
        Rejection: The model gave infinities or NaN for this request.
    """
    windows = _finite(vectors)
    if request.long_text is LongText.WINDOW_MAX:
        vector = windows.max(axis=0)
    else:
        vector = np.average(windows, axis=0, weights=lengths)
    if request.normalize:
        # A zero vector has no direction: it stays zero.
        vector /= max(float(np.linalg.norm(vector)), np.finfo(np.float32).tiny)
    return Embedding(vector.astype(np.float32), request.pooling, normalized=request.normalize)


def _finite(values: npt.NDArray[np.float32]) -> Floats:
    if not np.isfinite(values).all():
        raise Rejection(
            Reason.INFERENCE,
            "score",
            "the model gave infinities or NaN for this message; with model.precision fp16 try bf16 or fp32",
        )
    return values.astype(np.float64)
