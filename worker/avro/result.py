"""Outcomes become data of ``xnli.InferenceResult``; `worker.avro.codec` writes them as bytes. Pure."""

from __future__ import annotations

from typing import Any

from worker.messages import (
    Classification,
    Embedding,
    Encoded,
    Entailment,
    Job,
    Judgement,
    LabelScore,
    ModelIdentity,
    Outcome,
    Request,
    Span,
)
from worker.rules.retry_headers import origin_of


def result(job: Job, outcome: Outcome, model: ModelIdentity) -> dict[str, Any]:
    """The answer to ``job`` as a datum of ``xnli.InferenceResult``.

    The outcome carries the name of its union branch (fastavro's tuple notation), which spares the writer the search for
    a branch that fits.
    """
    record = job.record
    partition, offset = origin_of(record)  # as it was before any retry topic
    return answer(job.request, job.encoded, outcome, model) | {
        "source": {
            "topic": partition.topic,
            "partition": partition.number,
            "offset": offset,
            "timestamp": None if record.timestamp_ms < 0 else record.timestamp_ms,
        },
    }


def answer(request: Request, encoded: Encoded, outcome: Outcome, model: ModelIdentity) -> dict[str, Any]:
    """What a result says whatever way its request came: all but its source."""
    datum: dict[str, Any] = {
        "id": request.id,
        "task": request.task.value,
        "attributes": request.attributes,
        "outcome": _outcome(outcome),
        "model": {"name": model.name, "revision": model.revision},
        "truncated": encoded.truncated,
        "windows": encoded.windows,
    }
    # What few requests ask for is left to the schema's defaults, which costs less than to write it out.
    if request.label_set is not None:
        datum["label_set"] = {"name": request.label_set.name, "version": request.label_set.version}
    if request.detected is not None:
        datum["language"] = request.detected
    if isinstance(outcome, Classification) and outcome.labels and (window := outcome.labels[0].window) is not None:
        datum["window"] = _span(window)
    return datum


def _outcome(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    match outcome:
        case Classification():
            datum = {
                "labels": [_label(scored) for scored in outcome.labels],
                "multi_label": outcome.multi_label,
                "abstained": outcome.abstained,
                "evidence_cut": outcome.evidence_cut,
            }
            return "xnli.Classification", datum
        case Entailment():
            return "xnli.Entailment", {"judgements": [_judgement(judged) for judged in outcome.judgements]}
        case Embedding():
            return "xnli.Embedding", {
                "vector": outcome.vector.tolist(),
                "dimension": len(outcome.vector),
                "pooling": outcome.pooling.value,
                "normalized": outcome.normalized,
            }


def _label(scored: LabelScore) -> dict[str, Any]:
    datum: dict[str, Any] = {
        "label": scored.label,
        "score": scored.score,
        "entailment": scored.entailment,
        "neutral": scored.neutral,
        "contradiction": scored.contradiction,
    }
    if scored.path:
        datum["path"] = [{"label": step.label, "score": step.score} for step in scored.path]
    if scored.evidence:
        datum["evidence"] = [_span(found.span) | {"drop": found.drop} for found in scored.evidence]
    if scored.window is not None:
        datum["window"] = _span(scored.window)
    if scored.calibrated is not None:
        datum["calibrated"] = scored.calibrated
    return datum


def _judgement(judged: Judgement) -> dict[str, Any]:
    datum: dict[str, Any] = {
        "hypothesis": judged.hypothesis,
        "entailment": judged.entailment,
        "neutral": judged.neutral,
        "contradiction": judged.contradiction,
    }
    if judged.window is not None:
        datum["window"] = _span(judged.window)
    return datum


def _span(span: Span) -> dict[str, Any]:
    return {"start": span.start, "end": span.end}
