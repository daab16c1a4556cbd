from __future__ import annotations

import struct
from uuid import UUID

import pytest

from worker.avro.framing import Frame, Framing, frame
from worker.errors import Reason, Rejection
from worker.messages import Headers

GUID = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")


def test_confluent_schema_id_before_the_payload() -> None:
    value = b"\x00" + struct.pack(">I", 70_000) + b"payload"
    assert frame(value, ()) == Frame(Framing.CONFLUENT_ID, "70000", b"payload")


def test_single_object() -> None:
    value = b"\xc3\x01" + bytes(range(8)) + b"payload"
    assert frame(value, ()) == Frame(Framing.SINGLE_OBJECT, "0001020304050607", b"payload")


def test_confluent_guid_in_a_header_leaves_the_value_whole() -> None:
    headers: Headers = (("traceparent", b"x"), ("__value_schema_id", b"\x01" + GUID.bytes))
    assert frame(b"\x00payload", headers) == Frame(Framing.CONFLUENT_GUID, str(GUID), b"\x00payload")


def test_confluent_schema_id_in_a_header() -> None:
    headers: Headers = (("__value_schema_id", b"\x00\x00\x00\x00\x07"),)
    assert frame(b"payload", headers) == Frame(Framing.CONFLUENT_ID, "7", b"payload")


def test_a_header_without_a_value_says_nothing() -> None:
    assert frame(b"\x00\x00\x00\x00\x01", (("__value_schema_id", None),)).key == "1"


@pytest.mark.parametrize("schema_id", [b"", b"\x01", b"\x01" + bytes(15), b"\x02" + bytes(16), b"\x00\x01"])
def test_a_broken_header_is_malformed_even_where_the_value_would_do(schema_id: bytes) -> None:
    with pytest.raises(Rejection, match="__value_schema_id") as caught:
        frame(b"\x00\x00\x00\x00\x01", (("__value_schema_id", schema_id),))
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "value", [b"", b"\x00", b"\x00\x00\x00\x01", b"\xc3", b"\xc3\x01" + bytes(7), b"\x01" + bytes(16), b'{"id": 1}']
)
def test_anything_else_is_malformed(value: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        frame(value, ())
    assert (caught.value.reason, caught.value.stage) == (Reason.MALFORMED, "frame")


def test_the_limit_counts_the_whole_value() -> None:
    frame(b"\x00" * 10, (), max_message_bytes=10)
    with pytest.raises(Rejection, match=r"11 bytes.*is 10") as caught:
        frame(b"\x00" * 11, (), max_message_bytes=10)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("value", [b'{"id": "1", "text": "x"}', b' \n[{"id": "1"}]'])
def test_json_is_told_what_it_is(value: bytes) -> None:
    with pytest.raises(Rejection, match="looks like JSON: send Avro, or use xnli-worker send") as refused:
        frame(value, ())
    assert refused.value.reason is Reason.MALFORMED
