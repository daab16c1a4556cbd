"""The JSON requests of ``xnli-worker send`` become data. Pure."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Task


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
    abstain_on_neutral: Annotated[float, Strict()] | None = None
    evidence: Annotated[int, Strict(), Field(ge=-(2**31), lt=2**31)] = 0
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
