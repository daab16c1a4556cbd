"""What a datum asks for: checked against the limits, completed by the defaults. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.avro.excerpt import excerpt
from worker.errors import Reason, Rejection, UnknownLabelSet
from worker.messages import LongText, Pooling, Request, Task
from worker.rules.blank import INVISIBLE, is_blank
from worker.rules.calibration import NONE, Calibrations
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template, split
from worker.rules.label_set import LabelSet, LabelSets

# A request's language that asks for detection.
AUTO: Final = "auto"
# The tag of a language that cannot be determined (RFC 5646, section 2.2.1), as for a text of digits.
UNDETERMINED: Final = "und"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request means that does not say.

    ``hypothesis_template`` keeps the rule of `worker.rules.hypothesis_template`; the settings have checked it.
    ``label_sets`` is where sets are looked up, None where there are none; they may change under us. ``detect`` tells
    the language of a text, None where it cannot; without ``detect`` nothing here detects languages. ``language`` is
    that of requests that name none: `AUTO` or None. ``calibrations`` are those for the model that answers; none where
    that is swapped, for it brings its own (`worker.pipeline.served_model`).
    """

    hypothesis_template: str
    long_text: LongText
    pooling: Pooling
    normalize: bool
    label_sets: LabelSets | None = None
    detect: Callable[[str], str | None] | None = None
    language: str | None = None
    calibrations: Calibrations = NONE


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
    has_language = datum["language"] is not None or defaults.language is not None
    language, detected = _language(datum["language"], text, defaults) if has_language else (None, None)
    task = _TASKS[datum["task"]]
    labels: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = ()
    label_set: LabelSet | None = None
    if task is Task.CLASSIFY:
        own = datum["hypothesis_template"]
        template = defaults.hypothesis_template if own is None else _checked_template(own, limits)
        if datum["label_set"] is None:
            labels = _labels(datum, limits)
        else:
            label_set = _label_set(datum, defaults, limits, language)
            labels, hypotheses = label_set.labels, label_set.hypotheses
        if label_set is None or own is not None:
            before, after = split(template)
            hypotheses = tuple([before + label + after for label in labels])
    elif task is Task.ENTAIL:
        hypotheses = _hypotheses(datum, limits)

    _check_choice(datum)
    long_text, pooling, normalize = datum["long_text"], datum["pooling"], datum["normalize"]
    asked = Request(
        id=id_,
        task=task,
        text=text,
        labels=labels,
        hypotheses=hypotheses,
        multi_label=datum["multi_label"],
        language=language,
        top_k=datum["top_k"],
        threshold=datum["threshold"],
        long_text=defaults.long_text if long_text is None else LongText(long_text),
        pooling=defaults.pooling if pooling is None else Pooling(pooling),
        normalize=defaults.normalize if normalize is None else normalize,
        attributes=datum["attributes"],
        abstain_on_neutral=datum["abstain_on_neutral"],
        evidence=datum["evidence"],
        detected=detected,
    )
    completed = asked if label_set is None else _completed(asked, label_set, has_long_text=long_text is not None)
    return completed if defaults.calibrations is NONE else defaults.calibrations.applied(completed)


def _check_choice(datum: Mapping[str, Any]) -> None:
    """Refuse what says of labels and evidence which are wanted, and cannot be."""
    top_k, threshold = datum["top_k"], datum["threshold"]
    if top_k is not None and top_k < 1:
        raise _invalid("top_k", top_k, "ask for at least 1 label, or leave it null for all")
    if threshold is not None and not 0.0 <= threshold <= 1.0:  # NaN fails both comparisons
        raise _invalid("threshold", threshold, "scores lie in [0, 1]; leave it null for all labels")
    abstain_on_neutral, evidence = datum["abstain_on_neutral"], datum["evidence"]
    if abstain_on_neutral is not None and not 0.0 <= abstain_on_neutral <= 1.0:
        raise _invalid("abstain_on_neutral", abstain_on_neutral, "probabilities lie in [0, 1]; leave it null for never")
    if evidence < 0:
        raise _invalid("evidence", evidence, "ask for 1 span or more for each label, or for 0: none")


def _language(asked: str | None, text: str, defaults: Defaults) -> tuple[str | None, str | None]:
    """The language of a request, and that which was detected, if that was asked for."""
    if asked is None:
        asked = defaults.language
    elif is_blank(asked):
        raise _invalid("language", asked, "name a language code, 'auto' to have it detected, or leave it null")
    if asked != AUTO:
        return asked, None
    if defaults.detect is None:
        mend = (
            "nothing here detects languages; name the language, or install xnli-worker[language] where the worker runs"
        )
        raise _invalid("language", AUTO, mend)
    detected = defaults.detect(text) or UNDETERMINED
    return detected, detected


def _label_set(datum: Mapping[str, Any], defaults: Defaults, limits: Limits, language: str | None) -> LabelSet:
    name = datum["label_set"]
    if datum["labels"]:
        raise _invalid("label_set", name, "labels are given too; send one of the two")
    if defaults.label_sets is None:
        raise _invalid(
            "label_set",
            name,
            "the worker has no label sets; set topics.label_sets (serve: --label-sets FILE), or send labels",
        )
    found = defaults.label_sets.find(name, language)
    if found is None and is_blank(name):
        raise _invalid("label_set", name, "no set has such a name; name one, or send labels")
    if found is None:
        ways = "xnli-worker label-sets put; serve: --label-sets FILE"
        mend = f"there is no set of this name; write it ({ways}), or name another"
        raise UnknownLabelSet(name, f"label_set = {excerpt(name)}: {mend}")
    if found.longest_chars > limits.max_label_chars:
        raise _too_large(
            f"label_set {excerpt(name)}",
            f"a label, hypothesis or template of {found.longest_chars} characters",
            "max_label_chars",
            limits.max_label_chars,
        )
    return found


def _completed(asked: Request, label_set: LabelSet, *, has_long_text: bool) -> Request:
    """A request with what its label set says and it does not. The request goes before a label, a label before the set.

    What cannot be left open in a request (``multi_label``, ``evidence``) the set can only add.
    """
    top_k, neutral = asked.top_k, asked.abstain_on_neutral
    return replace(
        asked,
        multi_label=asked.multi_label or label_set.multi_label,
        top_k=label_set.top_k if top_k is None else top_k,
        threshold=label_set.threshold if asked.threshold is None else asked.threshold,
        thresholds=label_set.thresholds if asked.threshold is None else (),
        long_text=asked.long_text if has_long_text else label_set.long_text or asked.long_text,
        label_set=label_set.version,
        taxonomy=label_set.taxonomy,
        abstain_on_neutral=label_set.abstain_on_neutral if neutral is None else neutral,
        evidence=asked.evidence or label_set.evidence,
        calibration=label_set.calibration,
    )


_TASKS: Final = {task.value: task for task in Task}


def _labels(datum: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    labels = tuple(datum["labels"])
    if not labels:
        raise _invalid("labels", [], "CLASSIFY needs at least one label, or the name of a label_set")
    _check_sentences("labels", labels, limits)
    return labels


def _hypotheses(datum: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    hypotheses = tuple(datum["hypotheses"])
    if not hypotheses:
        raise _invalid("hypotheses", [], "ENTAIL needs at least one sentence to judge")
    _check_sentences("hypotheses", hypotheses, limits)
    return hypotheses


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
