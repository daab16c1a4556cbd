from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fastavro_bytes import to_bytes
from tests.unit.avro.samples import number, record, string
from worker.avro import json_request
from worker.avro.binary import decode
from worker.avro.codec import REQUEST, schema_folder
from worker.avro.schema_walk import schema
from worker.errors import Reason, Rejection

TEXT = (schema_folder() / REQUEST).read_text("utf-8")


def read(writer: str, payload: bytes, reader: str | None = None) -> dict[str, Any]:
    return decode(payload, schema(writer), schema(reader or writer, reader=True))


@pytest.mark.parametrize(
    "payload", [number(3) + b"\xff\xfe\xfd", number(3) + "\ud800".encode("utf-8", "surrogatepass")]
)
def test_text_that_is_not_utf8_is_malformed(payload: bytes) -> None:
    with pytest.raises(Rejection, match="UTF-8") as caught:
        read(record(("f", "string")), payload)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("string", number(1 << 40) + b"abc"),
        ({"type": "array", "items": "float"}, number(1 << 60) + b"abc"),
        ({"type": "array", "items": "string"}, number(-1) + number(-5) + b"abc"),
        ("double", b"1234567"),
    ],
)
def test_fields_nobody_reads_are_checked_too(kind: Any, payload: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        read(record(("f", kind)), payload, record())
    assert caught.value.reason is Reason.MALFORMED


def test_blocks_that_state_their_size_are_read() -> None:
    payload = number(-2) + number(2) + b"\x02\x04" + number(1) + b"\x06" + b"\x00"
    assert read(record(("f", {"type": "array", "items": "long"})), payload) == {"f": [1, 2, 3]}


def test_maps_in_several_blocks_are_read() -> None:
    payload = number(1) + string("a") + string("x") + number(1) + string("b") + string("y") + b"\x00"
    assert read(record(("f", {"type": "map", "values": "string"})), payload) == {"f": {"a": "x", "b": "y"}}


def test_references_come_before_what_refers_to_them() -> None:
    note = json.dumps({"type": "record", "name": "n.Note", "fields": [{"name": "by", "type": "string"}]})
    writer = schema(record(("note", "n.Note"), ("again", "n.Note")), (note,))
    reader = schema(record(("again", json.loads(note))), reader=True)
    assert decode(string("x") + string("y"), writer, reader) == {"again": {"by": "y"}}


def test_logical_types_are_read_as_they_lie() -> None:
    kinds: tuple[tuple[str, Any], ...] = (
        ("u", {"type": "string", "logicalType": "uuid"}),
        ("t", {"type": "long", "logicalType": "timestamp-millis"}),
        ("d", {"type": "bytes", "logicalType": "decimal", "precision": 4}),
    )
    payload = string("no uuid") + number(1 << 62) + number(2) + b"\xff\xff"
    assert read(record(*kinds), payload) == {"u": "no uuid", "t": 1 << 62, "d": b"\xff\xff"}


def test_a_schema_that_does_not_resolve_is_the_schemas_fault() -> None:
    with pytest.raises(Rejection, match="does not resolve") as caught:
        read(record(("f", "string")), string("x"), record(("f", "int")))
    assert caught.value.reason is Reason.SCHEMA


def test_a_field_without_a_default_must_be_written() -> None:
    with pytest.raises(Rejection, match="No default value for field g") as caught:
        read(record(("f", "string")), string("x"), record(("g", "string")))
    assert caught.value.reason is Reason.SCHEMA


def test_a_union_at_the_root_resolves() -> None:
    datum = json_request.request({"id": "1", "text": "hello", "labels": ["a"]})
    assert read(f'["null", {TEXT}]', b"\x02" + to_bytes(datum, schema(TEXT)), TEXT) == datum
