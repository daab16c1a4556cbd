"""The record of a label set: what the value of a record in the compacted topic may be, and what it means.

The models here are what is published as ``schemas/label-set.schema.json``: the text under a field is its description
there. A value is checked once, when it is read, by `read`; `LabelSetRecord.complete` makes of it what requests use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
)

from worker.messages import LabelSetVersion, LongText, Taxonomy
from worker.rules.blank import INVISIBLE, is_blank
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template, split
from worker.rules.label_set import OTHERWISE, LabelSet, normal_code, worded

MAX_LABELS: Final = 4096
MAX_DEPTH: Final = 8
_MAX_VERSION_CHARS: Final = 200
_CODE: Final = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
# Of a value that can be one of two things, which it is. (No field and no language has such a name.)
_TEXT, _OBJECT, _ARRAY = "<text>", "<object>", "<array>"


class RefusedError(Exception):
    """A value holds no label set; the text says where and why."""


def _visible(text: str) -> str:
    """Only what can be written and seen: what would fail each request that names the set is refused here, once."""
    if not text or (text[0] in INVISIBLE and is_blank(text)):
        raise ValueError("is blank: nothing of it can be seen")
    if not text.isascii() and _HALF_PAIR.search(text):
        raise ValueError("is no valid Unicode, or has half a surrogate pair: write UTF-8")
    return text


def _template(text: str) -> str:
    if not is_template(text):
        raise ValueError(TEMPLATE_RULE)
    return text


def _wording(text: str) -> str:
    if ("{" in text or "}" in text) and not is_template(text):
        raise ValueError(f"write a whole sentence without a brace, or a template: {TEMPLATE_RULE}")
    return text


def _code(text: str) -> str:
    if not _CODE.fullmatch(text):
        raise ValueError(f'is no language code: write one such as "de" or "pt-BR", or "{OTHERWISE}" for all others')
    return normal_code(text) or text


def _distinct(wordings: object) -> object:
    if isinstance(wordings, dict) and len({normal_code(str(code)) for code in wordings}) < len(wordings):
        raise ValueError("two of its keys are one language: case does not count")
    return wordings


def _kind(value: object) -> str:
    return _OBJECT if isinstance(value, dict | BaseModel) else _ARRAY if isinstance(value, list | tuple) else _TEXT


_SEEN: Final = {"minLength": 1, "pattern": r"\S"}
_Text = Annotated[str, Strict(), AfterValidator(_visible), Field(json_schema_extra=_SEEN)]
_Template = Annotated[
    _Text, AfterValidator(_template), Field(json_schema_extra={"pattern": r"^[^{}]*\{\}[^{}]*$", "minLength": 2})
]
_Wording = Annotated[
    _Text, AfterValidator(_wording), Field(json_schema_extra={"pattern": r"^[^{}]+(\{\}[^{}]*)?$|^\{\}[^{}]*$"})
]
_Code = Annotated[str, AfterValidator(_code)]
_BY_CODE: Final = Field(min_length=1, json_schema_extra={"propertyNames": {"pattern": f"^{_CODE.pattern}$"}})
_Templates = Annotated[
    Annotated[_Template, Tag(_TEXT)]
    | Annotated[dict[_Code, _Template], _BY_CODE, BeforeValidator(_distinct), Tag(_OBJECT)],
    Discriminator(_kind),
]
_Wordings = Annotated[
    Annotated[_Wording, Tag(_TEXT)]
    | Annotated[dict[_Code, _Wording], _BY_CODE, BeforeValidator(_distinct), Tag(_OBJECT)],
    Discriminator(_kind),
]
_Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Strict(), Field(ge=1, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Label(_Part):
    """A label with more than its name."""

    label: _Text
    """What results call it, and what stands in for {} in a template."""
    hypothesis: _Wordings | None = None
    """Its own wording: a whole sentence, or a template with {} for the label. An object has one for each language code,
    and "default" for all others. Without it the set's template makes the sentence."""
    threshold: _Share | None = None
    """The score it must reach to stand in a result, in place of the set's."""
    children: tuple[_Entry, ...] = ()
    """Labels under this one in a taxonomy. They are scored only where this one passes."""


_Entry = Annotated[Annotated[_Text, Tag(_TEXT)] | Annotated[Label, Tag(_OBJECT)], Discriminator(_kind)]


class LabelSetRecord(_Part):
    """A label set. The key of its record is its name."""

    name: _Text | None = None
    """Its name once more, for people and files; it must then be the key of the record."""
    version: Annotated[_Text, Field(max_length=_MAX_VERSION_CHARS)] | None = None
    """What results call this version of the set. Without it they say partition/offset of its record."""
    description: Annotated[str, Strict()] | None = None
    """For people; it changes nothing."""
    labels: Annotated[tuple[_Entry, ...], Field(min_length=1, max_length=MAX_LABELS)]
    """The labels: a text each, or an object with more. With those under them they are 4,096 at most, in 8 levels."""
    hypothesis_template: _Templates | None = None
    """Makes a label a hypothesis; it holds {} exactly once, and no other brace. An object has one for each language
    code, and "default" for all others. Without it the worker's own is used."""
    multi_label: Annotated[bool, Strict()] = False
    """Whether several labels may hold at once. A request may ask for that too."""
    top_k: _Count | None = None
    """At most so many labels stand in a result."""
    threshold: _Share | None = None
    """The score a label must reach to stand in a result."""
    beam: _Count = 1
    """In a taxonomy whose labels compete: how many labels of a level are followed, the best of them."""
    abstain_on_neutral: _Share | None = None
    """A label whose neutral probability reaches this value does not stand in a result."""
    long_text: LongText | None = None
    """What becomes of texts longer than the model's window."""
    evidence: Annotated[int, Strict(), Field(ge=0, lt=2**31)] = 0
    """How many spans of the text to return for each label that passed."""
    calibration: Annotated[_Text, Field(max_length=_MAX_VERSION_CHARS)] | None = None
    """The name of a calibration that the worker's operator offers (model.calibration). It is no file's name. Without it
    the worker's own is used, if it has one."""

    def complete(self, version: LabelSetVersion, language: str | None, template: str) -> LabelSet:
        """The set in one language (a `normal_code`), with the worker's template where the set has none for it."""
        tree = nodes(self.labels)
        chosen = worded(self.hypothesis_template, language) or template
        before, after = split(chosen)
        labels, hypotheses, thresholds = [], [], []
        longest = 0
        for entry, _, _ in tree:
            label, own = (entry, None) if isinstance(entry, str) else (entry.label, worded(entry.hypothesis, language))
            labels.append(label)
            hypotheses.append(before + label + after if own is None else label.join(split(own)) if "{" in own else own)
            threshold = None if isinstance(entry, str) else entry.threshold
            thresholds.append(self.threshold if threshold is None else threshold)
            longest = max(longest, len(label), len(own or ""))
        parents = tuple(parent for _, parent, _ in tree)
        has_own = any(isinstance(entry, Label) and entry.threshold is not None for entry, _, _ in tree)
        return LabelSet(
            version=version,
            labels=tuple(labels),
            hypotheses=tuple(hypotheses),
            longest_chars=max(longest, len(chosen)),
            taxonomy=Taxonomy(parents, self.beam) if any(parent >= 0 for parent in parents) else None,
            thresholds=tuple(thresholds) if has_own else (),
            threshold=self.threshold,
            top_k=self.top_k,
            multi_label=self.multi_label,
            abstain_on_neutral=self.abstain_on_neutral,
            evidence=self.evidence,
            long_text=self.long_text,
            calibration=self.calibration,
        )

    @property
    def languages(self) -> set[str]:
        """The language codes that it has a wording for, without the default."""
        wordings: list[object] = [self.hypothesis_template]
        wordings += [entry.hypothesis for entry, *_ in nodes(self.labels) if isinstance(entry, Label)]
        found = {code for wording in wordings if isinstance(wording, dict) for code in wording}
        return found - {OTHERWISE}


_Bare = Annotated[
    list[_Text],
    Field(min_length=1, max_length=MAX_LABELS, description="Nothing but labels, as texts."),
]
_VALUE: Final[TypeAdapter[LabelSetRecord | list[str]]] = TypeAdapter(
    Annotated[Annotated[_Bare, Tag(_ARRAY)] | Annotated[LabelSetRecord, Tag(_OBJECT)], Discriminator(_kind)]
)


def nodes(labels: Sequence[str | Label]) -> list[tuple[str | Label, int, int]]:
    """A tree, parents before children: each node, its parent's index or -1, and its level from 1."""
    found: list[tuple[str | Label, int, int]] = []
    waiting: list[tuple[str | Label, int, int]] = [(entry, -1, 1) for entry in reversed(labels)]
    while waiting:
        entry, parent, level = waiting.pop()
        if isinstance(entry, Label):
            waiting += [(child, len(found), level + 1) for child in reversed(entry.children)]
        found.append((entry, parent, level))
    return found


def read(name: str, value: bytes) -> LabelSetRecord:
    """What the value of a set's record says, checked.

    Raises:
        RefusedError: it is none; the text says where, as a path into the JSON, and why.
    """
    try:
        _visible(name)
    except ValueError as error:
        raise RefusedError(f"the key {error}") from None
    try:
        return checked(parsed(value), name)
    # A number of 5,000 digits is a bare ValueError; what is nested deeply can be read and then not be shown.
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the value is no JSON: {str(error)[:100]}") from None


def parsed(text: str | bytes) -> Any:
    """JSON in which no object has a key twice. Raises ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=_object)


def checked(value: object, name: str | None) -> LabelSetRecord:
    """As `read`, of JSON that is parsed already. ``name`` None: the record's own, if it has one."""
    if not isinstance(value, list | dict):
        raise RefusedError("the value is no object with labels, and no array of them")
    if value == []:
        raise RefusedError("the value is an empty array")
    _within_depth(value)
    try:
        found = _VALUE.validate_python(value)
    except ValidationError as error:
        raise RefusedError("; ".join(_findings(error))) from None
    if isinstance(found, list):
        # What a bare array always was: labels may repeat. (Texts are checked already.)
        return LabelSetRecord.model_construct(labels=tuple(found))
    if name is not None and found.name is not None and found.name != name:
        raise RefusedError(f"name = {_shown(found.name)}: the key of the record is {_shown(name)}; write the same")
    _check_tree(found.labels)
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a value."""
    schema = _VALUE.json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Label set",
        "description": "The value of a record in the compacted topic topics.label_sets; the key is the set's name. "
        "A tombstone takes the set away.",
        **schema,
    }


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {_shown(twice)} stands twice in one object")
    return found


def _within_depth(value: object) -> None:
    """Refuse a tree that is too deep before anything recurses into it."""
    level = [value] if isinstance(value, dict) else []
    key, depth = "labels", 0
    while level:
        lists = [node[key] for node in level if isinstance(node.get(key), list)]
        below = [entry for entries in lists for entry in entries]
        level = [node for node in below if isinstance(node, dict)]
        depth, key = depth + bool(below), "children"
        if depth > MAX_DEPTH:
            raise RefusedError(f"labels: they stand in more than {MAX_DEPTH} levels")


def _check_tree(labels: Sequence[str | Label], place: str = "labels") -> int:
    """How many labels they are, with those under them. Raises RefusedError."""
    names = [entry.label if isinstance(entry, Label) else entry for entry in labels]
    if len(set(names)) < len(names):
        first, again = next((names.index(name), i) for i, name in enumerate(names) if names.index(name) < i)
        raise RefusedError(
            f"{place}[{again}] = {_shown(names[again])}: {place}[{first}] beside it is the same; results could not "
            "tell them apart"
        )
    count = len(names)
    for i, entry in enumerate(labels):
        if isinstance(entry, Label) and entry.children:
            count += _check_tree(entry.children, f"{place}[{i}].children")
    if count > MAX_LABELS:
        raise RefusedError(f"labels: with the labels under them they are more than {MAX_LABELS}")
    return count


def _findings(error: ValidationError) -> Iterator[str]:
    found = error.errors(include_url=False)
    for finding in found[:3]:
        place = _path(finding["loc"]) or "the value"
        match finding["type"]:
            case "missing":
                yield f"{place} is missing"
            case "extra_forbidden":
                fields = Label if "[" in place else LabelSetRecord
                yield f"{place} is no field; fields are {', '.join(fields.model_fields)}"
            case _:
                yield f"{place} = {_shown(finding['input'])}: {_in_words_of_json(finding['msg'])}"
    if len(found) > 3:
        yield f"and {len(found) - 3} more"


def _in_words_of_json(said: str) -> str:
    words = {"Value error, ": "", "Tuple": "The array", "List": "The array", "tuple": "array", "list": "array"}
    for theirs, ours in (words | {"Dictionary": "The object", "dictionary": "object"}).items():
        said = said.replace(theirs, ours)
    return said


def _path(loc: Sequence[int | str]) -> str:
    path = ""
    for part in loc:
        if part in {_TEXT, _OBJECT, _ARRAY, "[key]"}:
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path.encode("utf-8", "backslashreplace").decode()


def _shown(value: object) -> str:
    text = repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:60] + "…"
