"""Outcomes become Avro data and bytes; so do the JSON requests of ``xnli-worker send``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Annotated, Any

import fastavro
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from worker.avro.request import Schema
from worker.errors import Reason, Rejection
from worker.messages import Classification, Embedding, Entailment, Job, LongText, ModelIdentity, Outcome, Pooling, Task
from worker.rules.retry_headers import origin_of


def to_bytes(datum: Mapping[str, Any], schema: Schema) -> bytes:
    """The datum in Avro's binary encoding, without framing."""
    buffer = BytesIO()
    fastavro.schemaless_writer(buffer, schema.parsed, datum)
    return buffer.getvalue()


def result(job: Job, outcome: Outcome, model: ModelIdentity) -> dict[str, Any]:
    """The answer to ``job`` as a datum of ``xnli.InferenceResult``.

    The outcome carries the name of its union branch (fastavro's tuple notation), which spares the writer the search for
    a branch that fits.
    """
    asked, record = job.request, job.record
    partition, offset = origin_of(record)  # before any retry topic
    return {
        "id": asked.id,
        "task": asked.task.value,
        "attributes": asked.attributes,
        "outcome": _outcome(outcome),
        "model": {"name": model.name, "revision": model.revision},
        "truncated": job.encoded.truncated,
        "windows": job.encoded.windows,
        "source": {
            "topic": partition.topic,
            "partition": partition.number,
            "offset": offset,
            "timestamp": None if record.timestamp_ms < 0 else record.timestamp_ms,
        },
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


def _encodable(text: str) -> str:
    text.encode()  # JSON can write half a surrogate pair; UnicodeEncodeError is a ValueError, which pydantic reports
    return text


Text = Annotated[str, Strict(), AfterValidator(_encodable)]


class _JsonRequest(BaseModel):
    """A request as a JSON object: fields, types and defaults of ``schemas/inference-request.avsc`` (a test compares).

    It checks what Avro needs and no more: whether the request makes sense is the worker's to say, and ``send`` must be
    able to send one that does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=True)

    id: Text
    text: Text
    task: Task = Task.CLASSIFY
    labels: list[Text] = Field(default_factory=list)
    label_set: Text | None = None
    hypothesis_template: Text | None = None
    multi_label: Annotated[bool, Strict()] = False
    hypotheses: list[Text] = Field(default_factory=list)
    language: Text | None = None
    top_k: Annotated[int, Strict(), Field(ge=-(2**31), lt=2**31)] | None = None
    threshold: Annotated[float, Strict()] | None = None
    long_text: LongText | None = None
    pooling: Pooling | None = None
    normalize: Annotated[bool, Strict()] | None = None
    attributes: dict[Text, Text] = Field(default_factory=dict)


def request(json_object: object) -> dict[str, Any]:
    """A JSON object, already parsed, as a datum of ``xnli.InferenceRequest``.

    Raises:
        Rejection: INVALID, when a field is unknown, missing or of another type. One finding after the other.
    """
    try:
        return _JsonRequest.model_validate(json_object).model_dump()
    except ValidationError as error:
        findings = []
        for found in error.errors(include_url=False):
            field = _printable(".".join(str(part) for part in found["loc"])) or "the line"
            match found["type"]:
                case "missing":
                    findings.append(f"{field} is required")
                case "extra_forbidden":
                    findings.append(
                        f"{field} is no field of a request; fields are {', '.join(_JsonRequest.model_fields)}"
                    )
                case _:
                    findings.append(f"{field} = {_printable(repr(found['input']))[:100]}: {found['msg']}")
        raise Rejection(Reason.INVALID, "encode", "; ".join(findings)) from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
