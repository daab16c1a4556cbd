"""APIs of others, so that their clients need only another address: Hugging Face's inference API, TEI's, OpenAI's.

What a client may ask of them and we do not do is refused by name, never passed over: an answer would seem to be what
was asked for.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Strict

from worker.avro import json_request
from worker.avro.json_request import FirstFinding, Text, Texts
from worker.errors import Reason, Rejection
from worker.http.asked import Answered, Asked, Rules, each
from worker.http.problem import Kind, Problem, of_rejection
from worker.messages import Classification, Embedding, Entailment, LongText, Outcome, Task

Flag = Annotated[bool, Strict()]
Vector = npt.NDArray[np.float32]

_Kind = TypeVar("_Kind", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPair(_Body):
    """A premise and a hypothesis, as transformers' text-classification pipeline takes them."""

    text: Text
    text_pair: Text


class Parameters(_Body):
    """What huggingface_hub sends beside the inputs. What is not done must be left out or null."""

    candidate_labels: Texts | Text | None = None
    multi_label: Flag | None = None
    hypothesis_template: Text | None = None
    normalize: Flag | None = None
    truncate: Flag | None = None
    truncation_direction: None = None
    prompt_name: None = None
    dimensions: None = None
    encoding_format: Literal["float"] | None = None


class HuggingFaceRequest(_Body):
    """One text, or a list; with candidate labels it is classified, a pair is judged, and all else is embedded."""

    inputs: Text | TextPair | Texts | Annotated[list[TextPair], FirstFinding()]
    parameters: Parameters = Parameters()
    options: dict[str, Any] | None = None  # of the hosted API: use_cache, wait_for_model


class TeiRequest(_Body):
    """The body of text-embeddings-inference's /embed."""

    inputs: Text | Texts
    normalize: Flag | None = None
    truncate: Flag | None = None
    truncation_direction: None = None
    prompt_name: None = None
    dimensions: None = None


class OpenAiRequest(_Body):
    """The body of OpenAI's /v1/embeddings."""

    input: Text | Texts
    model: Text
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: Text | None = None


class LabelAndScore(BaseModel):
    """A label and its score."""

    label: str
    score: float


class OpenAiEmbedding(BaseModel):
    """A vector: numbers, or float32 (little-endian) in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAiUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class OpenAiAnswer(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[OpenAiEmbedding]
    model: str
    usage: OpenAiUsage


def hugging_face(body: Any, rules: Rules) -> Asked:
    """`POST /` and `/models/{name}`. Raises Problem."""
    asked = _validated(HuggingFaceRequest, body)
    is_list = isinstance(asked.inputs, list)
    inputs: Sequence[Any] = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    if any(isinstance(one, TextPair) for one in inputs):
        return _judged(inputs, rules, is_list=is_list)
    parameters = asked.parameters
    if parameters.candidate_labels is None:
        return _embedded(inputs, rules, parameters, is_list=is_list)
    labels = parameters.candidate_labels
    if isinstance(labels, str):  # as transformers' pipeline reads them
        labels = [label.strip() for label in labels.split(",") if label.strip()]

    def datum(text: str) -> dict[str, Any]:
        return _datum(
            text,
            labels=labels,
            multi_label=bool(parameters.multi_label),
            hypothesis_template=parameters.hypothesis_template,
        )

    def answer(found: Sequence[Answered]) -> Any:
        answers = [_scores(one.outcome) for one in found]
        return answers if is_list else answers[0]

    return Asked(each(rules, inputs, datum, field="inputs", is_list=is_list), answer)


def _judged(pairs: Sequence[TextPair], rules: Rules, *, is_list: bool) -> Asked:
    """The three classes of each pair, likeliest first."""

    def datum(pair: TextPair) -> dict[str, Any]:
        return _datum(pair.text, task=Task.ENTAIL.value, hypotheses=[pair.text_pair])

    def answer(found: Sequence[Answered]) -> Any:
        answers = [_classes(one.outcome) for one in found]
        return answers if is_list else answers[0]

    return Asked(each(rules, pairs, datum, field="inputs", is_list=is_list), answer)


def _embedded(texts: Sequence[str], rules: Rules, asked: Parameters | TeiRequest, *, is_list: bool) -> Asked:
    """A vector for each text."""

    def datum(text: str) -> dict[str, Any]:
        long_text = LongText.TRUNCATE.value if asked.truncate else None
        return _datum(text, task=Task.EMBED.value, normalize=asked.normalize, long_text=long_text)

    requests = each(rules, texts, datum, field="inputs", is_list=is_list)
    if asked.truncate is False:
        for number, (_, encoded) in enumerate(requests):
            if encoded.truncated:
                too_long = Rejection(
                    Reason.TOO_LARGE, "encode", "the text is longer than the model reads; allow truncate", "inputs"
                )
                raise of_rejection(too_long, number if is_list else None)

    def answer(found: Sequence[Answered]) -> Any:
        vectors = [_vector(one).tolist() for one in found]
        return vectors if is_list else vectors[0]

    return Asked(requests, answer)


def tei(body: Any, rules: Rules) -> Asked:
    """TEI's `/embed`: a list of vectors, for one text too. Raises Problem."""
    asked = _validated(TeiRequest, body)
    texts = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
    return _embedded(texts, rules, asked, is_list=True)


def openai(body: Any, rules: Rules) -> Asked:
    """OpenAI's `/v1/embeddings`. Raises Problem."""
    if isinstance(body, dict) and _are_tokens(body.get("input")):
        raise Problem(Kind.INVALID, "input holds token ids, which are another model's; send text", "input")
    asked = _validated(OpenAiRequest, body)
    texts = asked.input if isinstance(asked.input, list) else [asked.input]
    requests = each(
        rules, texts, lambda text: _datum(text, task=Task.EMBED.value), field="input", is_list=texts is asked.input
    )

    def answer(found: Sequence[Answered]) -> Any:
        tokens = sum(one.encoded.tokens for one in found)
        vectors = [_vector(one) for one in found]
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector.tolist()
                if asked.encoding_format == "float"
                else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": rules.model.name, "usage": usage}

    return Asked(requests, answer)


def _are_tokens(given: object) -> bool:
    """True for a list of token ids, or a list of such lists."""
    if not isinstance(given, list) or not given:
        return False
    first = given[0]
    return isinstance(first, (int, list)) and not isinstance(first, bool)


def _validated(kind: type[_Kind], body: Any) -> _Kind:
    try:
        return json_request.validated(kind, body, "the request")
    except Rejection as refused:
        raise of_rejection(refused) from None


def _datum(text: str, **fields: Any) -> dict[str, Any]:
    """A datum of ``xnli.InferenceRequest`` with these fields. Raises Rejection."""
    return json_request.request({"id": "http", "text": text} | fields)


def _scores(outcome: Outcome) -> list[dict[str, Any]]:
    if not isinstance(outcome, Classification):
        raise TypeError(type(outcome))
    return [{"label": scored.label, "score": scored.score} for scored in outcome.labels]


def _classes(outcome: Outcome) -> list[dict[str, Any]]:
    if not isinstance(outcome, Entailment):
        raise TypeError(type(outcome))
    judged = outcome.judgements[0]
    scores = {name: getattr(judged, name) for name in ("entailment", "neutral", "contradiction")}
    ranked = sorted(scores.items(), key=lambda found: -found[1])
    return [{"label": name, "score": score} for name, score in ranked]


def _vector(found: Answered) -> Vector:
    if not isinstance(found.outcome, Embedding):
        raise TypeError(type(found.outcome))
    return found.outcome.vector
