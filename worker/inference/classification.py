"""A classification that one round of rows does not settle: a taxonomy, evidence, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from worker.inference.descent import Found, descend
from worker.inference.occlusion import evidence_for
from worker.inference.rounds import Asking, Logits, Meter
from worker.inference.scores import LabelOrder, apart, calibrated, competing, judge, ranked, window_of
from worker.inference.tokens import Tokens
from worker.messages import Classification, Encoded, LabelScore, Outcome, Request


def classified(
    request: Request, encoded: Encoded, logits: Logits, tokens: Tokens, order: LabelOrder
) -> Asking[Outcome]:
    """Finish a CLASSIFY request.

    Args:
        request: With a taxonomy, or one that asks for evidence.
        encoded: As `Tokens.encode` made it.
        logits: Those of ``encoded.rows``.
        tokens: Makes further rows.
        order: Which class is which.

    Returns:
        The request's `Classification`.

    Raises:
        Rejection: The model gave infinities or NaN.
    """
    meter = Meter(tokens.max_request_tokens, encoded.tokens)
    if request.taxonomy is None:
        found = _flat(request, encoded, logits, order)
    else:
        found = yield from descend(request, request.taxonomy, encoded, logits, tokens, order, meter)
    shown = found[: request.top_k]
    labels: Sequence[LabelScore] = [one.label for one in shown]
    is_cut = False
    if request.evidence and shown:
        evidence, is_cut = yield from evidence_for(request, encoded, shown, tokens, order, meter)
        labels = [replace(label, evidence=own) for label, own in zip(labels, evidence, strict=True)]
    return Classification(tuple(labels), multi_label=request.multi_label, abstained=not found, evidence_cut=is_cut)


def _flat(request: Request, encoded: Encoded, logits: Logits, order: LabelOrder) -> list[Found]:
    """What `scores.score` keeps, before ``top_k``, with the windows that decided."""
    judged = judge(logits, encoded.windows, request.long_text, order)
    scores = (apart if request.multi_label else competing)(judged.logits)
    entailment, neutral, contradiction = judged.probabilities.T.tolist()
    probable = calibrated(request, scores)
    return [
        Found(
            i,
            LabelScore(
                request.labels[i],
                float(scores[i]),
                entailment[i],
                neutral[i],
                contradiction[i],
                window=window_of(request, judged, encoded.spans, i),
                calibrated=None if probable is None else probable[i],
            ),
            None if judged.windows is None else int(judged.windows[i]),
        )
        for i in ranked(request, scores, neutral, probable)
    ]
