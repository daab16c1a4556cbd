"""Schemas compiled into walks over bytes that strangers send. Pure.

fastavro believes what the bytes declare: a writer's schema with an array of nulls loops as often as the data says, a
skipped field may end past the end, an index of -1 counts from the back, and a schema that contains itself overflows the
C stack. So every payload is walked before fastavro reads it (`check`, about a fifth of the whole cost), and `schema`
refuses schemas that would let few bytes mean much work. After the walk, the work and memory of a message are
proportional to its length, and what fastavro still refuses is a matter of schema resolution.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import fastavro
from fastavro.schema import fingerprint as avro_fingerprint
from fastavro.schema import to_parsing_canonical_form

from worker.avro.excerpt import clip
from worker.errors import Reason, Rejection

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
        raise _unfit(f"the writer's schema is no Avro schema: {type(error).__name__}: {clip(str(error))}") from error
    is_record = isinstance(parsed, dict) and parsed["type"] == "record"
    return Schema(
        name=str(parsed["name"]) if is_record else clip(canonical),
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


def check(payload: bytes, writer: Schema) -> None:
    """Walk the payload, which must be exactly one datum of the writer's schema.

    Raises:
        Rejection: MALFORMED or TOO_LARGE, as for `worker.avro.binary.decode`.
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
