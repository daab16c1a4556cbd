"""Our own API: /v1/classify, /v1/entail and /v1/embed take the fields of the Avro request, one or a list."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from worker.avro import json_request
from worker.avro.json_request import JsonRequest, Text
from worker.avro.result import answer as result_of
from worker.http.asked import Answered, Asked, Read, Rules, each
from worker.messages import Task


def _new_id() -> str:
    return uuid.uuid4().hex


def _kind(task: Task) -> type[JsonRequest]:
    """A request of one task: its name need not be said, nor its id."""
    only: Any = Literal[task.value]
    kind: type[JsonRequest] = create_model(
        f"{task.value.capitalize()}Request",
        __base__=JsonRequest,
        __doc__="The fields of the Avro request; see docs/messages.md.",
        id=(Annotated[Text, Field(min_length=1)], Field(default_factory=_new_id)),
        task=(only, task.value),
    )
    return kind


KINDS: Final = {task: _kind(task) for task in Task}


def reader(task: Task) -> Read:
    """What reads bodies that ask for ``task``."""
    kind = KINDS[task]

    def datum(item: Any) -> dict[str, Any]:
        return json_request.validated(kind, item, "the request").model_dump()

    def read(body: Any, rules: Rules) -> Asked:
        is_list = isinstance(body, list)
        requests = each(rules, body if is_list else [body], datum, is_list=is_list)

        def answer(found: Sequence[Answered]) -> Any:
            results = [_result(one, rules) for one in found]
            return results if is_list else results[0]

        return Asked(requests, answer)

    return read


def _result(found: Answered, rules: Rules) -> dict[str, Any]:
    """The result as `xnli-worker tail` shows it, without the place that the request was read from."""
    datum = result_of(found.request, found.encoded, found.outcome, found.encoded.model or rules.model)
    datum["outcome"] = datum["outcome"][1]  # without the name of the branch of Avro's union
    return datum


class Score(BaseModel):
    """A label, its score, and the probabilities of the three classes behind it."""

    label: str
    score: float
    entailment: float
    neutral: float
    contradiction: float
    calibrated: float | None = None


class ClassificationOutcome(BaseModel):
    """Labels by falling score."""

    labels: list[Score]
    multi_label: bool
    abstained: bool


class JudgementOutcome(BaseModel):
    """The probabilities of the three classes for a hypothesis."""

    hypothesis: str
    entailment: float
    neutral: float
    contradiction: float


class EntailmentOutcome(BaseModel):
    """A judgement for each hypothesis."""

    judgements: list[JudgementOutcome]


class EmbeddingOutcome(BaseModel):
    """A vector."""

    vector: list[float]
    dimension: int
    pooling: str
    normalized: bool


class ModelName(BaseModel):
    """The checkpoint that answered."""

    name: str
    revision: str


class _Result(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str
    task: str
    attributes: dict[str, str]
    model: ModelName
    truncated: bool
    windows: int


class ClassifyResult(_Result):
    """The answer to a classify request."""

    outcome: ClassificationOutcome


class EntailResult(_Result):
    """The answer to an entail request."""

    outcome: EntailmentOutcome


class EmbedResult(_Result):
    """The answer to an embed request."""

    outcome: EmbeddingOutcome


RESULTS: Final[dict[Task, type[BaseModel]]] = {
    Task.CLASSIFY: ClassifyResult,
    Task.ENTAIL: EntailResult,
    Task.EMBED: EmbedResult,
}
