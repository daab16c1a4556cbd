from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.avro.samples import number, record, string
from worker.avro.codec import REQUEST, schema_folder
from worker.avro.schema_walk import check, schema
from worker.errors import Reason, Rejection

TEXT = (schema_folder() / REQUEST).read_text("utf-8")


class TestFingerprint:
    @pytest.mark.parametrize(("text", "fingerprint"), [('"int"', 0x7275D51A3F395C8F), ('"null"', 0x63DD24E7CC258F8A)])
    def test_published_values_of_the_java_implementation(self, text: str, fingerprint: int) -> None:
        assert schema(text).fingerprint == fingerprint.to_bytes(8, "little").hex()

    def test_documentation_and_defaults_do_not_count(self) -> None:
        assert schema(TEXT).fingerprint == schema(TEXT, reader=True).fingerprint


class TestHostileBytes:
    """What fastavro alone would loop on, allocate, crash on, or take for something else."""

    @pytest.mark.parametrize(
        ("kind", "payload", "what"),
        [
            ("string", number(1 << 40) + b"abc", "end early in field 'f'"),
            ("string", number(-3) + b"abc", "negative length in field 'f'"),
            ("bytes", number(4) + b"abc", "end early in field 'f'"),
            ("string", b"\xff" * 50, "more than 64 bits in field 'f'"),
            ("long", b"\xff" * 9 + b"\x7f", "more than 64 bits"),
            ("long", b"", "end early"),
            ("double", b"1234567", "end early"),
            ("boolean", b"\x02", "byte 2 as a boolean"),
            ({"type": "fixed", "name": "F", "size": 1 << 40}, b"123", "end early"),
            ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, number(-1), "index -1 where there are 2 symbols"),
            ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, number(2), "index 2 where there are 2 symbols"),
            (["null", "string"], number(-1) + string("x"), "index -1 where there are 2 branches"),
            (["null", "string"], number(1000), "index 1000 where there are 2 branches"),
            ({"type": "array", "items": "string"}, number(1 << 60) + b"abc", "items announced with 3 bytes left"),
            ({"type": "array", "items": "double"}, number(2) + b"12345678" + b"1234567", "2 items announced"),
            ({"type": "array", "items": "long"}, number(-2) + number(9) + b"\x02\x04\x00", "a block whose size"),
            ({"type": "array", "items": "long"}, number(-2) + number(-2) + b"\x02\x04\x00", "negative size"),
            ({"type": "array", "items": "long"}, b"\x80\x00" * 9, "an empty block"),
            ({"type": "map", "values": "null"}, number(1 << 50) + b"abc", "items announced"),
            ("null", b"x", "1 bytes are left over"),
            ("string", string("abc") + b"\x00\x00", "2 bytes are left over"),
        ],
    )
    def test_is_malformed_and_says_where(self, kind: Any, payload: bytes, what: str) -> None:
        with pytest.raises(Rejection, match=what) as caught:
            check(payload, schema(record(("f", kind))))
        assert caught.value.reason is Reason.MALFORMED

    @pytest.mark.parametrize(("items", "kind"), [(b"\x00", "string"), (b"\x00" * 4, "float")])
    def test_more_items_than_anyone_needs_are_too_large(self, items: bytes, kind: str) -> None:
        def payload(count: int) -> bytes:
            return number(count) + items * count + b"\x00"

        writer = record(("f", {"type": "array", "items": kind}))
        check(payload(16_384), schema(writer))
        with pytest.raises(Rejection, match="16384 items") as caught:
            check(payload(16_385), schema(writer))
        assert caught.value.reason is Reason.TOO_LARGE
        with pytest.raises(Rejection, match="16384 items"):
            check((number(1) + items) * 16_385 + b"\x00", schema(writer))


class TestSchemas:
    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "no Avro schema"),
            ("{", "no Avro schema"),
            ("null", "no Avro schema"),
            ('"strnig"', "no Avro schema"),
            ('{"type": "record", "name": "R", "fields": 3}', "no Avro schema"),
            (record(("f", "R")), "contains itself"),
            (record(("f", ["null", "R"])), "contains itself"),
            (record(("f", {"type": "array", "items": "null"})), "without bytes"),
            (record(("f", {"type": "array", "items": {"type": "record", "name": "E", "fields": []}})), "without bytes"),
            (record(("f", {"type": "array", "items": {"type": "fixed", "name": "Z", "size": 0}})), "without bytes"),
            (record(*((f"f{i}", "null") for i in range(65))), "66 values without bytes"),
            ("[" * 5000 + "]" * 5000, "deep"),
            ('{"type":"array","items":' * 300 + '"int"' + "}" * 300, "nests"),
            (" " * 1_000_001, "characters"),
        ],
    )
    def test_those_that_cannot_be_read_safely_are_refused(self, text: str, what: str) -> None:
        with pytest.raises(Rejection, match=what) as caught:
            schema(text)
        assert caught.value.reason is Reason.SCHEMA

    def test_names_that_double_each_other_do_not_explode(self) -> None:
        # Forty levels, each of which holds the one below twice: 2**40 nulls in no bytes.
        kind: Any = "null"
        for level in range(20):
            fields = [{"name": "a", "type": kind}, {"name": "b", "type": f"L{level - 1}" if level else "null"}]
            kind = {"type": "record", "name": f"L{level}", "fields": fields}
        with pytest.raises(Rejection, match="without bytes"):
            schema(json.dumps(kind))
