"""What the compiled writers write is what fastavro writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.fastavro_bytes import to_bytes
from tests.property.schemas import names, records, schemas
from worker.avro import schema_walk
from worker.avro.codec import REQUEST, RESULT, schema_folder
from worker.avro.writing import Writer
from worker.errors import Rejection

TEXTS = {name: (schema_folder() / name).read_text(encoding="utf-8") for name in (REQUEST, RESULT)}


def values(kind: Any, named: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Data of a schema as JSON says it; fields with a default may be absent, branches of several are named."""
    match kind:
        case str() if kind in named:
            return values(named[kind], named)
        case str():
            return {
                "null": st.none(),
                "boolean": st.booleans(),
                "int": st.integers(-(2**31), 2**31 - 1),
                "long": st.integers(-(2**63), 2**63 - 1),
                "float": st.floats(width=32),
                "double": st.floats(),
                "string": st.text(st.characters(codec="utf-8"), max_size=70),
            }[kind]
        case list() if len(kind) == 2 and kind[0] == "null":
            return st.none() | values(kind[1], named)
        case list():
            return st.one_of([st.tuples(st.just(f"xnli.{each['name']}"), values(each, named)) for each in kind])
        case {"type": "record"}:
            named[kind["name"]] = kind
            fields = {field["name"]: values(field["type"], named) for field in kind["fields"]}
            optional = {field["name"] for field in kind["fields"] if "default" in field}
            return st.fixed_dictionaries(
                {name: found for name, found in fields.items() if name not in optional},
                optional={name: found for name, found in fields.items() if name in optional},
            )
        case {"type": "enum"}:
            named[kind["name"]] = kind
            return st.sampled_from(kind["symbols"])
        case {"type": "array"}:
            return st.lists(values(kind["items"], named), max_size=3)
        case {"type": "map"}:
            return st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=9), values(kind["values"], named))
        case _:
            return values(kind["type"], named)


def both(text: str, datum: Mapping[str, Any]) -> tuple[bytes, bytes]:
    compiled = schema_walk.schema(text, reader=True)
    return Writer(compiled.parsed).to_bytes(datum), to_bytes(datum, compiled)


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
def test_requests_and_results(name: str, data: st.DataObject) -> None:
    ours, fastavros = both(TEXTS[name], data.draw(values(json.loads(TEXTS[name]), {})))
    assert ours == fastavros


@given(st.builds(records, names, st.lists(schemas, max_size=4)), st.data())
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
def test_any_schema(pair: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject) -> None:
    kind, drawn = pair
    try:
        compiled = schema_walk.schema(json.dumps(kind), reader=True)
    except Rejection:  # such as one of our random names used twice
        return
    datum = data.draw(drawn)
    assert Writer(compiled.parsed).to_bytes(datum) == to_bytes(datum, compiled)


def record(*fields: dict[str, Any]) -> str:
    return json.dumps({"type": "record", "name": "R", "fields": fields})


def test_an_absent_field_has_its_default_and_one_without_a_default_is_asked_for() -> None:
    text = record(
        {"name": "a", "type": ["string", "null"], "default": "first branch"},
        {"name": "b", "type": {"type": "array", "items": "double"}, "default": [0.5, math.inf]},
        {"name": "c", "type": {"type": "map", "values": "int"}, "default": {"k": -65}},
        {"name": "d", "type": "long"},
    )
    ours, fastavros = both(text, {"d": -(2**63)})
    assert ours == fastavros
    with pytest.raises(KeyError, match="d"):
        both(text, {})


def test_a_number_that_does_not_fit_is_refused() -> None:
    writer = Writer(schema_walk.schema(record({"name": "n", "type": "long"})).parsed)
    with pytest.raises(OverflowError, match="64 bits"):
        writer.to_bytes({"n": 2**63})
