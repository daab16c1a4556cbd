"""Bytes and a schema become a request, or a reason why not. Pure; and as strangers send the bytes, it believes nothing.

Three steps, each of which raises `Rejection` and nothing else:

1. `frame` tells the wire formats apart and says which writer's schema the payload needs.
2. `decode` checks that the payload is exactly one datum of that schema, then lets fastavro read and resolve it.
3. `request` checks what the datum asks for against the limits and fills in the defaults.

fastavro believes what the bytes declare: a writer's schema with an array of nulls loops as often as the data says, a
skipped field may end past the end, an index of -1 counts from the back, and a schema that contains itself overflows the
C stack. So every payload is walked first (`check`, about a fifth of the whole cost), and schemas that would let
few bytes mean much work are refused when they are compiled. After the walk, the work and memory of a message are
proportional to its length, and what fastavro still refuses is a matter of schema resolution.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import fastavro
from fastavro.schema import fingerprint as avro_fingerprint
from fastavro.schema import to_parsing_canonical_form

from worker.errors import Reason, Rejection, SettingsError
from worker.messages import Headers, LongText, Pooling, Request, Task

SCHEMA_ID_HEADER: Final = "__value_schema_id"

_SINGLE_OBJECT: Final = b"\xc3\x01"


class Framing(StrEnum):
    """How a value names its writer's schema."""

    CONFLUENT_ID = "schema id"
    CONFLUENT_GUID = "schema guid"
    SINGLE_OBJECT = "fingerprint"


class Frame(NamedTuple):
    """A payload and the name of its writer's schema.

    ``key`` is the decimal schema id, the GUID in its usual text form, or the fingerprint as 16 hex digits in the byte
    order of the wire.
    """

    framing: Framing
    key: str
    payload: bytes


def frame(value: bytes, headers: Headers, max_message_bytes: int | None = None) -> Frame:
    """Tell the wire formats apart.

    A header ``__value_schema_id`` wins, as in Confluent's readers; it holds ``01`` and the 16 bytes of a GUID, or
    ``00`` and a big-endian schema id, and the value is then the bare payload. Without it the value begins with ``00``
    and the schema id, or with ``C3 01`` and the little-endian CRC-64-AVRO fingerprint (Avro's single-object encoding).

    Raises:
        Rejection: MALFORMED, or TOO_LARGE for a value over ``max_message_bytes``.
    """
    if max_message_bytes is not None and len(value) > max_message_bytes:
        raise Rejection(
            Reason.TOO_LARGE,
            "frame",
            f"the value has {len(value)} bytes, limits.max_message_bytes is {max_message_bytes}; "
            "send a shorter text or raise the limit",
        )
    for name, mark in headers:
        if name == SCHEMA_ID_HEADER and mark is not None:
            if len(mark) == 17 and mark[0] == 1:
                return Frame(Framing.CONFLUENT_GUID, str(UUID(bytes=mark[1:])), value)
            if len(mark) == 5 and mark[0] == 0:
                return Frame(Framing.CONFLUENT_ID, str(int.from_bytes(mark[1:], "big")), value)
            raise Rejection(
                Reason.MALFORMED,
                "frame",
                f"header {SCHEMA_ID_HEADER} is {_short(mark)}; "
                "it must hold 01 and a GUID of 16 bytes, or 00 and a schema id of 4 bytes",
            )
    if value[:1] == b"\x00" and len(value) >= 5:
        return Frame(Framing.CONFLUENT_ID, str(int.from_bytes(value[1:5], "big")), value[5:])
    if value[:2] == _SINGLE_OBJECT and len(value) >= 10:
        return Frame(Framing.SINGLE_OBJECT, value[2:10].hex(), value[10:])
    raise Rejection(
        Reason.MALFORMED,
        "frame",
        f"the value begins {_short(value[:12])} and has {len(value)} bytes; it must begin with 00 and a schema id of "
        f"4 bytes, or with C3 01 and a fingerprint of 8 bytes, or come with a header {SCHEMA_ID_HEADER}",
    )


# Schemas ----------------------------------------------------------------------------------------------------------

# Takes the payload and where a value begins, returns where it ends. Past the end of the bytes it raises IndexError or
# returns a position that the next read cannot reach.
Walk = Callable[[bytes, int], int]

# A schema's JSON text may nest this deep; one level of Avro takes up to three of JSON.
_MAX_NESTING: Final = 128
# How many values of no bytes (nulls outside unions, empty records) a datum may hold outside its arrays.
_MAX_EMPTY: Final = 64
_MAX_SCHEMA_CHARS: Final = 1_000_000
# Of one array or map. Empty strings take a byte each, so a megabyte could hold a million of them, and reading those
# takes a hundred times as long as reading a text of that size.
_MAX_ITEMS: Final = 16_384


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled Avro schema. ``parsed`` is fastavro's form, logical types removed: values are read as they lie.

    ``fingerprint`` is CRC-64-AVRO of the parsing canonical form, 16 hex digits in the byte order of the wire.
    ``fields`` are the top-level fields with their walks; of a schema that is no record, one walk without a name.
    """

    name: str
    parsed: Any
    fingerprint: str
    fields: tuple[tuple[str, Walk], ...]


def schema(text: str, references: Sequence[str] = (), *, reader: bool = False) -> Schema:
    """Compile a schema from its JSON text and the texts of those it refers to, in an order that defines names first.

    A writer's defaults are dropped unread, because they play no part in reading and some writers' are wrong.

    Raises:
        Rejection: SCHEMA, when the text is no Avro schema, or one that would let a short message cause long work: it
            contains itself, has arrays of values without bytes, or is nested or expanded beyond all use.
    """
    if len(text) > _MAX_SCHEMA_CHARS:
        raise _unfit(f"the writer's schema has {len(text)} characters; {_MAX_SCHEMA_CHARS} are read")
    names: dict[str, Any] = {}
    try:
        for reference in references:
            fastavro.parse_schema(_bare(json.loads(reference), keep_defaults=reader), names)
        parsed: Any = fastavro.parse_schema(_bare(json.loads(text), keep_defaults=reader), names)
        compiler = _Compiler(names)
        root = compiler.node(parsed)
        canonical = to_parsing_canonical_form(parsed)
    except Rejection:
        raise
    except RecursionError:
        raise _unfit("the writer's schema is nested too deep; flatten it") from None
    except Exception as error:  # fastavro raises whatever its look-ups raise: KeyError, TypeError, its own
        raise _unfit(f"the writer's schema is no Avro schema: {type(error).__name__}: {_clip(str(error))}") from error
    is_record = isinstance(parsed, dict) and parsed["type"] == "record"
    return Schema(
        name=str(parsed["name"]) if is_record else _clip(canonical),
        parsed=parsed,
        fingerprint=avro_fingerprint(canonical, "CRC-64-AVRO"),
        fields=(
            tuple((f["name"], compiler.node(f["type"]).walk) for f in parsed["fields"])
            if is_record
            else (("", root.walk),)
        ),
    )


def _bare(raw: Any, *, keep_defaults: bool, nesting: int = 0) -> Any:
    """A copy without logical types (a uuid is to stay text, a decimal bytes) and, of a writer, without defaults."""
    if nesting > _MAX_NESTING:
        raise _unfit(f"the writer's schema nests more than {_MAX_NESTING} levels of JSON; flatten it")
    if isinstance(raw, list):
        return [_bare(item, keep_defaults=keep_defaults, nesting=nesting + 1) for item in raw]
    if not isinstance(raw, dict):
        return raw
    return {
        key: value if key == "default" else _bare(value, keep_defaults=keep_defaults, nesting=nesting + 1)
        for key, value in raw.items()
        if key not in {"logicalType", "doc"} and (keep_defaults or key != "default")
    }


class _BadBytesError(Exception):
    """The payload breaks Avro's rules; the text says how."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A compiled type: its walk, the fewest bytes a value takes, the bytes if all take the same, and the empties."""

    walk: Walk
    least: int
    exact: int | None = None
    empties: int = 0


class _Compiler:
    """Turns fastavro's parsed schemas into walks. ``None`` in ``_nodes`` marks a named type still under way."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._nodes: dict[str, _Node | None] = {}

    def node(self, parsed: Any) -> _Node:
        if isinstance(parsed, str):
            primitive = _PRIMITIVES.get(parsed)
            return primitive if primitive is not None else self._named(parsed, self._names[parsed])
        if isinstance(parsed, list):
            return _union([self.node(branch) for branch in parsed])
        kind = parsed["type"]
        if kind in {"record", "error", "enum", "fixed"}:
            return self._named(parsed["name"], parsed)
        if kind == "array":
            return _blocks(self.node(parsed["items"]), keyed=False)
        if kind == "map":
            return _blocks(self.node(parsed["values"]), keyed=True)
        return self.node(kind)

    def _named(self, name: str, parsed: Any) -> _Node:
        if name in self._nodes:
            known = self._nodes[name]
            if known is None:
                raise _unfit(f"the writer's type {name} contains itself, which has no bound; give it a fixed depth")
            return known
        self._nodes[name] = None
        node = self._define(parsed)
        if node.empties > _MAX_EMPTY:
            raise _unfit(f"the writer's type {name} holds {node.empties} values without bytes; {_MAX_EMPTY} are read")
        self._nodes[name] = node
        return node

    def _define(self, parsed: Any) -> _Node:
        if parsed["type"] == "enum":
            return _Node(_choice([_stay] * len(parsed["symbols"]), "symbols"), least=1)
        if parsed["type"] == "fixed":
            return _fixed(int(parsed["size"]))
        fields = [self.node(field["type"]) for field in parsed["fields"]]
        walks = tuple(field.walk for field in fields)

        def record(data: bytes, at: int) -> int:
            for walk in walks:
                at = walk(data, at)
            return at

        least = sum(field.least for field in fields)
        return _Node(record, least, empties=sum(field.empties for field in fields) + (least == 0))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned variable-length number at ``at``, before zig-zag, and where it ends. At most 64 bits."""
    number = shift = 0
    for at in range(at, at + 10):  # noqa: B020, PLR1704 (moving on is the point)
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                break
            return number, at + 1
        shift += 7
    raise _BadBytesError("a number of more than 64 bits")


def _stay(_: bytes, at: int) -> int:
    return at


def _number(data: bytes, at: int) -> int:
    return at + 1 if data[at] < 0x80 else _varint(data, at)[1]


def _boolean(data: bytes, at: int) -> int:
    if data[at] > 1:
        raise _BadBytesError(f"byte {data[at]} as a boolean")
    return at + 1


def _length(data: bytes, at: int) -> int:
    size = data[at]
    if size < 0x80:
        at += 1
    else:
        size, at = _varint(data, at)
    if size & 1:
        raise _BadBytesError("a negative length")
    return at + (size >> 1)


def _fixed(size: int) -> _Node:
    def fixed(_: bytes, at: int) -> int:
        return at + size

    return _Node(fixed, least=size, exact=size, empties=int(size == 0))


_PRIMITIVES: Final = {
    "null": _Node(_stay, least=0, empties=1),
    "boolean": _Node(_boolean, least=1),
    "int": _Node(_number, least=1),
    "long": _Node(_number, least=1),
    "float": _fixed(4),
    "double": _fixed(8),
    "bytes": _Node(_length, least=1),
    "string": _Node(_length, least=1),
}


def _choice(walks: Sequence[Walk], noun: str) -> Walk:
    """An index followed by what it chooses: a union, or an enum, whose symbols have no bytes of their own."""

    def choice(data: bytes, at: int) -> int:
        index = data[at]
        if index < 0x80:
            at += 1
        else:
            index, at = _varint(data, at)
        if index & 1 or index >> 1 >= len(walks):
            raise _BadBytesError(f"index {(index >> 1) ^ -(index & 1)} where there are {len(walks)} {noun}")
        return walks[index >> 1](data, at)

    return choice


def _union(branches: Sequence[_Node]) -> _Node:
    return _Node(
        _choice([branch.walk for branch in branches], "branches"),
        least=1 + min((branch.least for branch in branches), default=0),
        empties=max((branch.empties for branch in branches if branch.walk is not _stay), default=0),
    )


def _keyed(value: Walk) -> Walk:
    def entry(data: bytes, at: int) -> int:
        return value(data, _length(data, at))

    return entry


def _blocks(item: _Node, *, keyed: bool) -> _Node:
    """An array, or a map, whose items are preceded by their keys."""
    least = item.least + keyed
    if least == 0:
        raise _unfit("the writer's schema has an array of values without bytes, which has no bound; drop the field")
    walk, exact = (_keyed(item.walk), None) if keyed else (item.walk, item.exact)

    def blocks(data: bytes, at: int) -> int:
        items = 0
        while count := data[at]:
            if count & 0x81:
                count, at, end = _block(data, at)
            else:
                count, at, end = count >> 1, at + 1, None
            if count * least > len(data) - at:
                raise _BadBytesError(f"{count} items announced with {max(len(data) - at, 0)} bytes left")
            items += count
            if items > _MAX_ITEMS:
                raise Rejection(
                    Reason.TOO_LARGE, "decode", f"an array or map of more than {_MAX_ITEMS} items; send fewer"
                )
            if exact is not None:
                at += count * exact
            else:
                for _ in range(count):
                    at = walk(data, at)
            if end is not None and at != end:
                raise _BadBytesError("a block whose size is not that of its items")
        return at + 1

    return _Node(blocks, least=1)


def _block(data: bytes, at: int) -> tuple[int, int, int | None]:
    """The head of a block whose count is large or negative: its count, where its items begin, and end if it says so."""
    number, at = _varint(data, at)
    if number == 0:  # padded with high bits; fastavro would stop here
        raise _BadBytesError("an empty block")
    if not number & 1:
        return number >> 1, at, None
    size, at = _varint(data, at)  # a negative count is followed by the size of the block in bytes
    if size & 1:
        raise _BadBytesError("a block of negative size")
    return (number + 1) >> 1, at, at + (size >> 1)


# Data -------------------------------------------------------------------------------------------------------------


def decode(payload: bytes, writer: Schema, reader: Schema) -> dict[str, Any]:
    """Read ``payload``, written with ``writer``, as ``reader`` (which must be a record).

    Raises:
        Rejection: MALFORMED when the payload is not exactly one datum of the writer's schema, or holds text that is not
            UTF-8; TOO_LARGE for an array or map of more than 16,384 items; SCHEMA when the datum does not resolve to
            the reader's schema (Avro specification, "Schema Resolution"), which may depend on the union branches and
            enum symbols it uses.
    """
    check(payload, writer)
    # Equal canonical forms resolve to themselves, and reading without a reader's schema is twice as fast.
    target = None if writer.fingerprint == reader.fingerprint else reader.parsed
    try:
        datum: Any = fastavro.schemaless_reader(BytesIO(payload), writer.parsed, target)
    except UnicodeDecodeError as error:
        raise Rejection(
            Reason.MALFORMED,
            "decode",
            f"text that is not UTF-8 ({error.reason}): {_short(error.object)}; encode strings as UTF-8",
        ) from None
    except Exception as error:  # SchemaResolutionError, and what resolution trips over in odd schemas
        raise Rejection(
            Reason.SCHEMA,
            "decode",
            f"the writer's schema {writer.name} does not resolve to {reader.name}: {_clip(str(error))}; "
            "compare it with the schemas that come with the worker",
        ) from error
    return cast("dict[str, Any]", datum)  # what a record resolves to


def check(payload: bytes, writer: Schema) -> None:
    """Walk the payload, which must be exactly one datum of the writer's schema.

    Raises:
        Rejection: MALFORMED or TOO_LARGE, as for `decode`.
    """
    at, name = 0, ""
    try:
        for name, walk in writer.fields:
            at = walk(payload, at)
            if at > len(payload):
                raise _malformed(payload, writer, "its bytes end early", name)
    except IndexError:
        raise _malformed(payload, writer, "its bytes end early", name) from None
    except _BadBytesError as error:
        raise _malformed(payload, writer, str(error), name) from None
    if at != len(payload):
        raise _malformed(payload, writer, f"{len(payload) - at} bytes are left over")


def _malformed(payload: bytes, writer: Schema, what: str, field: str = "") -> Rejection:
    where = f" in field {field!r}" if field else ""
    return Rejection(
        Reason.MALFORMED,
        "decode",
        f"the payload of {len(payload)} bytes is no {writer.name}: {what}{where}; "
        "it was cut off, or written with another schema than the one it names",
    )


def _unfit(message: str) -> Rejection:
    return Rejection(Reason.SCHEMA, "schema", message)


# Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request means that does not say. ``label_sets`` may change under us: it is looked up for each request.

    Raises:
        SettingsError: the template does not have exactly one ``{}``, or another brace.
    """

    hypothesis_template: str
    long_text: LongText
    pooling: Pooling
    normalize: bool
    label_sets: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if not _is_template(self.hypothesis_template):
            raise SettingsError(f"model.hypothesis_template = {self.hypothesis_template!r}: {_TEMPLATE_RULE}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request.

    ``max_label_chars`` holds for labels, hypotheses and templates; ``max_labels`` for labels and for hypotheses;
    ``max_message_bytes`` for the whole value, framing included, and is given to `frame`.
    """

    max_text_chars: int
    max_labels: int
    max_label_chars: int
    max_message_bytes: int


def request(datum: Mapping[str, Any], defaults: Defaults, limits: Limits) -> Request:
    """Check what a datum of ``xnli.InferenceRequest`` asks for, and fill in what it leaves open.

    A blank text, label or hypothesis is refused: the model would answer it, and the answer would mean nothing. Fields
    of other tasks are not read (labels of an EMBED, for one). Labels may repeat; their order is kept.

    Raises:
        Rejection: INVALID or TOO_LARGE, naming the field, its value and the mend.
    """
    id_, text = datum["id"], datum["text"]
    if not id_:
        raise _invalid("id", id_, "give each request a name of its own")
    if len(text) > limits.max_text_chars:
        raise _too_large("text", f"{len(text)} characters", "max_text_chars", limits.max_text_chars)
    if not text or text.isspace():
        raise _invalid("text", text, "send some text to judge")

    task = _TASKS[datum["task"]]
    labels: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = ()
    if task is Task.CLASSIFY:
        labels = _labels(datum, defaults.label_sets)
        _check_sentences("labels", labels, limits)
        before, after = _template(datum["hypothesis_template"], defaults, limits)
        hypotheses = tuple([before + label + after for label in labels])
    elif task is Task.ENTAIL:
        hypotheses = tuple(datum["hypotheses"])
        if not hypotheses:
            raise _invalid("hypotheses", [], "ENTAIL needs at least one sentence to judge")
        _check_sentences("hypotheses", hypotheses, limits)

    language, top_k, threshold = datum["language"], datum["top_k"], datum["threshold"]
    if language is not None and not language.strip():
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
_TEMPLATE_RULE: Final = "write exactly one {} where the label goes, and no other brace"


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
        raise _invalid("label_set", name, f"registered are {_clip(', '.join(sorted(label_sets)) or 'none')}")
    return known


def _check_sentences(field: str, sentences: tuple[str, ...], limits: Limits) -> None:
    if len(sentences) > limits.max_labels:
        raise _too_large(field, f"{len(sentences)} entries", "max_labels", limits.max_labels)
    for index, sentence in enumerate(sentences):
        if not sentence or sentence.isspace():
            raise _invalid(f"{field}[{index}]", sentence, "leave blank entries out")
        if len(sentence) > limits.max_label_chars:
            raise _too_large(
                f"{field}[{index}]", f"{len(sentence)} characters", "max_label_chars", limits.max_label_chars
            )


def _template(own: str | None, defaults: Defaults, limits: Limits) -> tuple[str, str]:
    """What stands before and after the label. Joined with ``+``: a template from outside never meets ``str.format``."""
    if own is None:
        own = defaults.hypothesis_template
    elif len(own) > limits.max_label_chars:
        raise _too_large("hypothesis_template", f"{len(own)} characters", "max_label_chars", limits.max_label_chars)
    elif not _is_template(own):
        raise _invalid("hypothesis_template", own, _TEMPLATE_RULE)
    before, _, after = own.partition("{}")
    return before, after


def _is_template(text: str) -> bool:
    return "{}" in text and text.count("{") == 1 and text.count("}") == 1


def _invalid(field: str, value: object, mend: str) -> Rejection:
    return Rejection(Reason.INVALID, "validate", f"{field} = {_short(value)}: {mend}")


def _too_large(field: str, size: str, limit: str, bound: int) -> Rejection:
    return Rejection(
        Reason.TOO_LARGE, "validate", f"{field} has {size}, limits.{limit} is {bound}; send less or raise the limit"
    )


_MAX_SHOWN: Final = 100


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN * 3 else f"{text[: _MAX_SHOWN * 3]}..."


def _short(value: object) -> str:
    """A value as messages show it: bytes in hex, everything cut to about 100 characters."""
    if isinstance(value, bytes):
        shown = value[: _MAX_SHOWN // 2].hex(" ", 1)
        return shown if len(value) <= _MAX_SHOWN // 2 else f"{shown} ..."
    shown = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
