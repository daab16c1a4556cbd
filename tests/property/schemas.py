"""Schemas at random with data that fit them: what reads or writes Avro must agree with fastavro about all of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.integers(0, 10**9).map(lambda n: f"N{n}")


def pairs(kind: Any, values: st.SearchStrategy[Any]) -> tuple[Any, st.SearchStrategy[Any]]:
    return kind, values


primitives = st.sampled_from(
    [
        pairs("null", st.none()),
        pairs("boolean", st.booleans()),
        pairs("int", st.integers(-(2**31), 2**31 - 1)),
        pairs("long", st.integers(-(2**63), 2**63 - 1)),
        pairs("float", st.floats(width=32)),
        pairs("double", st.floats()),
        pairs("bytes", st.binary(max_size=70)),
        pairs("string", st.text(st.characters(codec="utf-8"), max_size=70)),
    ]
)
enums = names.map(
    lambda name: pairs({"type": "enum", "name": name, "symbols": ["A", "B", "C"]}, st.sampled_from("ABC"))
)
fixeds = names.map(lambda name: pairs({"type": "fixed", "name": name, "size": 3}, st.binary(min_size=3, max_size=3)))


def arrays(inner: tuple[Any, st.SearchStrategy[Any]]) -> tuple[Any, st.SearchStrategy[Any]]:
    return pairs({"type": "array", "items": inner[0]}, st.lists(inner[1], max_size=4))


def maps(inner: tuple[Any, st.SearchStrategy[Any]]) -> tuple[Any, st.SearchStrategy[Any]]:
    return pairs({"type": "map", "values": inner[0]}, st.dictionaries(texts, inner[1], max_size=4))


def optionals(inner: tuple[Any, st.SearchStrategy[Any]]) -> tuple[Any, st.SearchStrategy[Any]]:
    if inner[0] == "null" or isinstance(inner[0], list):
        return inner
    return pairs(["null", inner[0]], st.none() | inner[1])


def records(name: str, inners: list[tuple[Any, st.SearchStrategy[Any]]]) -> tuple[Any, st.SearchStrategy[Any]]:
    return pairs(
        {"type": "record", "name": name, "fields": [{"name": f"f{i}", "type": k} for i, (k, _) in enumerate(inners)]},
        st.fixed_dictionaries({f"f{i}": values for i, (_, values) in enumerate(inners)}),
    )


schemas = st.recursive(
    primitives | enums | fixeds,
    lambda inner: st.one_of(
        inner.map(arrays), inner.map(maps), inner.map(optionals), st.builds(records, names, st.lists(inner, max_size=4))
    ),
    max_leaves=8,
)
