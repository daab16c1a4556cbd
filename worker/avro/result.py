"""Outcomes become data of ``xnli.InferenceResult``; `worker.avro.codec` writes them as bytes. Pure."""

from __future__ import annotations

from typing import Any

from worker.messages import Classification, Embedding, Encoded, Entailment, Job, ModelIdentity, Outcome, Request
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
    return {
        "id": request.id,
        "task": request.task.value,
        "attributes": request.attributes,
        "outcome": _outcome(outcome),
        "model": {"name": model.name, "revision": model.revision},
        "truncated": encoded.truncated,
        "windows": encoded.windows,
    }


def _outcome(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    match outcome:
        case Classification():
            labels = [
                {
                    "label": scored.label,
                    "score": scored.score,
                    "entailment": scored.entailment,
                    "neutral": scored.neutral,
                    "contradiction": scored.contradiction,
                }
                for scored in outcome.labels
            ]
            return "xnli.Classification", {
                "labels": labels,
                "multi_label": outcome.multi_label,
                "abstained": outcome.abstained,
            }
        case Entailment():
            judgements = [
                {
                    "hypothesis": judged.hypothesis,
                    "entailment": judged.entailment,
                    "neutral": judged.neutral,
                    "contradiction": judged.contradiction,
                }
                for judged in outcome.judgements
            ]
            return "xnli.Entailment", {"judgements": judgements}
        case Embedding():
            return "xnli.Embedding", {
                "vector": outcome.vector.tolist(),
                "dimension": len(outcome.vector),
                "pooling": outcome.pooling.value,
                "normalized": outcome.normalized,
            }
