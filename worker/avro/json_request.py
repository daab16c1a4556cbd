"""Requests as JSON, which ``xnli-worker send`` and HTTP take, become data. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, Strict, ValidationError

from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Task

# Of a field's name, as findings show it: a stranger's may be a megabyte.
_NAME_CHARS: Final = 100

_Kind = TypeVar("_Kind", bound=BaseModel)


def _encodable(text: str) -> str:
    text.encode()  # JSON can write half a surrogate pair; UnicodeEncodeError is a ValueError, which pydantic reports
    return text


Text = Annotated[str, Strict(), AfterValidator(_encodable)]


class FirstFinding(FailFast):
    """One finding is enough: a list of a million numbers would be a million findings."""

    __hash__ = object.__hash__  # without which a list in a union of types cannot be marked


Texts = Annotated[list[Text], FirstFinding()]


class JsonRequest(BaseModel):
    """A request as a JSON object: fields, types and defaults of ``schemas/inference-request.avsc`` (a test compares).

    It checks what Avro needs and no more: whether the request makes sense is the worker's to say, and ``send`` must be
    able to send one that does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_enum_values=True)

    id: Text
    text: Text
    task: Task = Task.CLASSIFY
    labels: Texts = Field(default_factory=list)
    label_set: Text | None = None
    hypothesis_template: Text | None = None
    multi_label: Annotated[bool, Strict()] = False
    hypotheses: Texts = Field(default_factory=list)
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
    return validated(JsonRequest, json_object, "the line").model_dump()


def validated(kind: type[_Kind], json_object: object, whole: str) -> _Kind:
    """A JSON object, already parsed, as ``kind``; ``whole`` names it where no field is to blame.

    Raises:
        Rejection: INVALID, when a field is unknown, missing or of another type. One finding after the other.
    """
    try:
        return kind.model_validate(json_object)
    except ValidationError as error:
        findings = []
        first = ""
        for found in error.errors(include_url=False):
            named = _printable(".".join(str(part) for part in found["loc"]))[:_NAME_CHARS]
            first = first or named
            field = named or whole
            match found["type"]:
                case "missing":
                    findings.append(f"{field} is required")
                case "extra_forbidden":
                    findings.append(f"{field} is no field of a request; fields are {', '.join(kind.model_fields)}")
                case _:
                    findings.append(f"{field} = {_printable(repr(found['input']))[:100]}: {found['msg']}")
        raise Rejection(Reason.INVALID, "encode", "; ".join(findings), first) from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
