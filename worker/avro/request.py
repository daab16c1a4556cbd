"""What a datum asks for: checked against the limits, completed by the defaults. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.avro.excerpt import clip, excerpt
from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Request, Task
from worker.rules.blank import INVISIBLE, is_blank
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template, split


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request means that does not say.

    ``hypothesis_template`` keeps the rule of `worker.rules.hypothesis_template`; the settings have checked it.
    ``label_sets`` may change under us: it is looked up for each request.
    """

    hypothesis_template: str
    long_text: LongText
    pooling: Pooling
    normalize: bool
    label_sets: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request.

    ``max_label_chars`` holds for labels, hypotheses and templates; ``max_labels`` for labels and for hypotheses;
    ``max_message_bytes`` for the whole value, framing included, and is given to `worker.avro.framing.frame`.
    """

    max_text_chars: int
    max_labels: int
    max_label_chars: int
    max_message_bytes: int


def request(datum: Mapping[str, Any], defaults: Defaults, limits: Limits) -> Request:
    """Check what a datum of ``xnli.InferenceRequest`` asks for, and fill in what it leaves open.

    A text, label or hypothesis of which nothing can be seen is refused: the model would answer it, and the answer would
    mean nothing. Fields of other tasks are not read (labels of an EMBED, for one). Labels may repeat; their order is
    kept.

    Raises:
        Rejection: INVALID or TOO_LARGE, naming the field, its value and the mend.
    """
    id_, text = datum["id"], datum["text"]
    if not id_:
        raise _invalid("id", id_, "give each request a name of its own")
    if len(text) > limits.max_text_chars:
        raise _too_large("text", f"{len(text)} characters", "max_text_chars", limits.max_text_chars)
    # One look at the first character settles it as a rule, and costs no more than `isspace`.
    if not text or (text[0] in INVISIBLE and is_blank(text)):
        raise _invalid("text", text, "nothing of it can be seen; send some text to judge")

    task = _TASKS[datum["task"]]
    labels: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = ()
    if task is Task.CLASSIFY:
        labels = _labels(datum, defaults.label_sets)
        _check_sentences("labels", labels, limits)
        own = datum["hypothesis_template"]
        before, after = split(defaults.hypothesis_template if own is None else _checked_template(own, limits))
        hypotheses = tuple([before + label + after for label in labels])
    elif task is Task.ENTAIL:
        hypotheses = tuple(datum["hypotheses"])
        if not hypotheses:
            raise _invalid("hypotheses", [], "ENTAIL needs at least one sentence to judge")
        _check_sentences("hypotheses", hypotheses, limits)

    language, top_k, threshold = datum["language"], datum["top_k"], datum["threshold"]
    if language is not None and is_blank(language):
        raise _invalid("language", language, "name a language code of the checkpoint, or leave it null")
    if top_k is not None and top_k < 1:
        raise _invalid("top_k", top_k, "ask for at least 1 label, or leave it null for all")
    if threshold is not None and not 0.0 <= threshold <= 1.0:  # NaN fails both comparisons
        raise _invalid("threshold", threshold, "scores lie in [0, 1]; leave it null for all labels")

    long_text, pooling, normalize = datum["long_text"], datum["pooling"], datum["normalize"]
    return Request(
        id=id_,
        task=task,
        text=text,
        labels=labels,
        hypotheses=hypotheses,
        multi_label=datum["multi_label"],
        language=language,
        top_k=top_k,
        threshold=threshold,
        long_text=defaults.long_text if long_text is None else LongText(long_text),
        pooling=defaults.pooling if pooling is None else Pooling(pooling),
        normalize=defaults.normalize if normalize is None else normalize,
        attributes=datum["attributes"],
    )


_TASKS: Final = {task.value: task for task in Task}


def _labels(datum: Mapping[str, Any], label_sets: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    labels, name = datum["labels"], datum["label_set"]
    if name is None:
        if not labels:
            raise _invalid("labels", [], "CLASSIFY needs at least one label, or the name of a label_set")
        return tuple(labels)
    if labels:
        raise _invalid("label_set", name, "labels are given too; send one of the two")
    known = label_sets.get(name)
    if not known:
        raise _invalid("label_set", name, f"registered are {clip(', '.join(sorted(label_sets)) or 'none')}")
    return known


def _check_sentences(field: str, sentences: tuple[str, ...], limits: Limits) -> None:
    if len(sentences) > limits.max_labels:
        raise _too_large(field, f"{len(sentences)} entries", "max_labels", limits.max_labels)
    for index, sentence in enumerate(sentences):
        if not sentence or (sentence[0] in INVISIBLE and is_blank(sentence)):
            raise _invalid(f"{field}[{index}]", sentence, "leave blank entries out")
        if len(sentence) > limits.max_label_chars:
            raise _too_large(
                f"{field}[{index}]", f"{len(sentence)} characters", "max_label_chars", limits.max_label_chars
            )


def _checked_template(text: str, limits: Limits) -> str:
    if len(text) > limits.max_label_chars:
        raise _too_large("hypothesis_template", f"{len(text)} characters", "max_label_chars", limits.max_label_chars)
    if not is_template(text):
        raise _invalid("hypothesis_template", text, TEMPLATE_RULE)
    return text


def _invalid(field: str, value: object, mend: str) -> Rejection:
    return Rejection(Reason.INVALID, "validate", f"{field} = {excerpt(value)}: {mend}", field)


def _too_large(field: str, size: str, limit: str, bound: int) -> Rejection:
    return Rejection(
        Reason.TOO_LARGE,
        "validate",
        f"{field} has {size}, limits.{limit} is {bound}; send less or raise the limit",
        field,
    )
