"""Logits and token states become outcomes. The rules of zero-shot classification stand here and nowhere else.

The rule is that of Yin et al., "Benchmarking Zero-shot Text Classification" (2019), in the form that transformers'
``ZeroShotClassificationPipeline`` made common: each label becomes a hypothesis, and

- single label: the scores are the softmax, over the labels, of the entailment logit;
- multi-label, or one label alone: each score is the softmax of (contradiction, entailment), taken at entailment.

The pipeline guesses the contradiction class by its position; here all classes are found by name (`LabelOrder`). All
arithmetic is float64 with the maximum subtracted first, so that no logit overflows. Equal scores keep the request's
order.

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

from dataclasses import dataclass

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


def score(
    request: Request, logits: npt.NDArray[np.float32], windows: int, order: LabelOrder
) -> Classification | Entailment:
    """Turn a request's logits into its outcome.

    Args:
        request: A CLASSIFY or ENTAIL request with at least one hypothesis.
        logits: (hypotheses * windows, classes); row ``h * windows + w`` is hypothesis ``h`` over window ``w``.
        windows: Number of windows the text was cut into, at least 1.
        order: Which class is which.

    Raises:
        Rejection: The model gave infinities or NaN for this request; a result must not carry them.
    """
    # From here on the classes are (entailment, neutral, contradiction), or (entailment, contradiction).
    named = [order.entailment, order.contradiction]
    if order.neutral is not None:
        named.insert(1, order.neutral)
    classes = _finite(logits).reshape(len(request.hypotheses), windows, -1)[:, :, named]
    evidence = _combine(classes, request.long_text)
    probabilities = softmax(evidence)
    if order.neutral is None:
        probabilities = np.insert(probabilities, 1, 0.0, axis=-1)
    entailment, neutral, contradiction = probabilities.T.tolist()

    if request.task is Task.ENTAIL:
        return Entailment(tuple(map(Judgement, request.hypotheses, entailment, neutral, contradiction)))

    if request.multi_label or len(request.labels) == 1:
        scores = softmax(evidence[:, [0, -1]])[:, 0]
    else:
        scores = softmax(evidence[:, 0])
    ranked = np.argsort(-scores, kind="stable").tolist()
    kept = [i for i in ranked if request.threshold is None or scores[i] >= request.threshold]
    return Classification(
        labels=tuple(
            LabelScore(request.labels[i], float(scores[i]), entailment[i], neutral[i], contradiction[i])
            for i in kept[: request.top_k]
        ),
        multi_label=request.multi_label,
        abstained=not kept,
    )


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


def _combine(classes: Floats, long_text: LongText) -> Floats:
    """(hypotheses, windows, classes) to (hypotheses, classes)."""
    if classes.shape[1] == 1:
        return classes[:, 0]
    if long_text is LongText.WINDOW_MEAN:
        return np.asarray(classes.mean(axis=1))
    best = softmax(classes)[:, :, 0].argmax(axis=1)
    return np.asarray(classes[np.arange(len(classes)), best])


def _finite(values: npt.NDArray[np.float32]) -> Floats:
    if not np.isfinite(values).all():
        raise Rejection(
            Reason.INFERENCE,
            "score",
            "the model gave infinities or NaN for this message; with model.precision fp16 try bf16 or fp32",
        )
    return values.astype(np.float64)
