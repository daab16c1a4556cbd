"""Our own schemas compiled into writers: data become Avro's binary encoding. Pure.

fastavro's writer asks for each field of each datum anew what its type is, half a microsecond a field, and writes the
default of a field that is absent as if it had been given. Results have many fields that few requests ask for. Here an
absent field is a few bytes made beforehand, so what nobody asks for costs next to nothing; a result of two labels took
8 microseconds in place of 21. Writers' schemas of strangers are never compiled here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct, pack
from typing import Any, Final

# Takes what adds bytes to the output, and the value.
_Write = Callable[[Callable[[bytes], None], Any], None]

_END: Final = b"\x00"  # of an array or map: a block of no items
_SHORT: Final = [bytes((number << 1,)) for number in range(64)]
_DOUBLE: Final = Struct("<d")
_FLOAT: Final = Struct("<f")
_FLOATS: Final = {"float": "f", "double": "d"}


class Writer:
    """Writes data of one schema.

    A record is a mapping; of its fields those may be absent that have a default, and names that the schema does not
    know are passed over. A value of a union is None, the value itself where there is one other branch, else a pair of
    the branch's full name and the value. Values are trusted to fit: what does not raises whatever Python raises.

    Args:
        parsed: A schema as `worker.avro.schema_walk.Schema.parsed` holds it.
    """

    def __init__(self, parsed: Any) -> None:
        self._write = _Compiler().write(parsed)

    def to_bytes(self, datum: Mapping[str, Any]) -> bytes:
        """The datum in Avro's binary encoding (specification 1.12, "Binary Encoding")."""
        parts: list[bytes] = []
        self._write(parts.append, datum)
        return b"".join(parts)


class _Compiler:
    """Turns fastavro's parsed schemas into functions."""

    def __init__(self) -> None:
        self._named: dict[str, _Write] = {}

    def write(self, parsed: Any) -> _Write:
        if isinstance(parsed, str):
            return _PRIMITIVES.get(parsed) or self._named[parsed]
        if isinstance(parsed, list):
            return self._union(parsed)
        kind = parsed["type"]
        if kind == "record":
            found = self._named[parsed["name"]] = self._record(parsed["fields"])
            return found
        if kind == "enum":
            found = self._named[parsed["name"]] = _enum(parsed["symbols"])
            return found
        if kind == "fixed":
            found = self._named[parsed["name"]] = _fixed
            return found
        if kind == "array":
            item = parsed["items"]
            is_float = isinstance(item, str) and item in _FLOATS
            return _numbers(_FLOATS[item]) if is_float else _array(self.write(item))
        if kind == "map":
            return _map(self.write(parsed["values"]))
        return self.write(kind)

    def _record(self, fields: Sequence[Mapping[str, Any]]) -> _Write:
        written = [(field, self.write(field["type"])) for field in fields]
        compiled = tuple((field["name"], write, _default(field, write)) for field, write in written)

        def record(add: Callable[[bytes], None], value: Any) -> None:
            for name, write, default in compiled:
                if name in value:
                    write(add, value[name])
                elif default is not None:
                    add(default)
                else:
                    raise KeyError(name)

        return record

    def _union(self, branches: Sequence[Any]) -> _Write:
        writes = [self.write(branch) for branch in branches]
        if len(branches) == 2 and "null" in branches:
            null = branches.index("null")
            absent, present, write = _long(null), _long(1 - null), writes[1 - null]

            def optional(add: Callable[[bytes], None], value: Any) -> None:
                if value is None:
                    add(absent)
                else:
                    add(present)
                    write(add, value)

            return optional
        named = {
            branch if isinstance(branch, str) else branch.get("name", branch["type"]): (_long(index), write)
            for index, (branch, write) in enumerate(zip(branches, writes, strict=True))
        }

        def union(add: Callable[[bytes], None], value: Any) -> None:
            name, chosen = ("null", None) if value is None else value
            index, write = named[name]
            add(index)
            write(add, chosen)

        return union


def _default(field: Mapping[str, Any], write: _Write) -> bytes | None:
    if "default" not in field:
        return None
    parts: list[bytes] = []
    write(parts.append, field["default"])
    return b"".join(parts)


def _enum(symbols: Sequence[str]) -> _Write:
    numbers = {symbol: _long(index) for index, symbol in enumerate(symbols)}
    return lambda add, value: add(numbers[value])


def _array(item: _Write) -> _Write:
    def array(add: Callable[[bytes], None], value: Any) -> None:
        if value:
            add(_long(len(value)))
            for each in value:
                item(add, each)
        add(_END)

    return array


def _numbers(code: str) -> _Write:
    """An array of floats or doubles: they lie end to end, so a vector is one call."""

    def numbers(add: Callable[[bytes], None], value: Any) -> None:
        if value:
            add(_long(len(value)))
            add(pack(f"<{len(value)}{code}", *value))
        add(_END)

    return numbers


def _map(item: _Write) -> _Write:
    def mapping(add: Callable[[bytes], None], value: Any) -> None:
        if value:
            add(_long(len(value)))
            for key, each in value.items():
                _string(add, key)
                item(add, each)
        add(_END)

    return mapping


def _long(number: int) -> bytes:
    """Zigzag, then seven bits a byte, the lowest first."""
    if 0 <= number < 64:
        return _SHORT[number]
    rest = (number << 1) ^ (number >> 63)
    if not 0 <= rest < 1 << 64:
        raise OverflowError(f"{number} does not fit 64 bits")
    found = bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    found.append(rest)
    return bytes(found)


def _bytes(add: Callable[[bytes], None], value: Any) -> None:
    add(_long(len(value)))
    add(value)


def _fixed(add: Callable[[bytes], None], value: Any) -> None:
    add(value)


def _string(add: Callable[[bytes], None], value: Any) -> None:
    encoded = value.encode()
    add(_long(len(encoded)))
    add(encoded)


_PRIMITIVES: Final[dict[str, _Write]] = {
    "null": lambda add, value: None,  # noqa: ARG005 (no bytes)
    "boolean": lambda add, value: add(b"\x01" if value else b"\x00"),
    "int": lambda add, value: add(_long(value)),
    "long": lambda add, value: add(_long(value)),
    "float": lambda add, value: add(_FLOAT.pack(value)),
    "double": lambda add, value: add(_DOUBLE.pack(value)),
    "bytes": _bytes,
    "string": _string,
}
