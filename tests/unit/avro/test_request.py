from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from worker.avro import request, result
from worker.avro.registry import REQUEST, schema_folder
from worker.avro.request import Defaults, Frame, Framing, Limits
from worker.errors import Reason, Rejection, SettingsError
from worker.messages import Headers, LongText, Pooling, Task

TEXT = (schema_folder() / REQUEST).read_text("utf-8")
READER = request.schema(TEXT, reader=True)
WRITER = request.schema(TEXT)
DEFAULTS = Defaults(
    "This example is {}.", LongText.TRUNCATE, Pooling.MEAN, normalize=True, label_sets={"moods": ("glad", "sad")}
)
LIMITS = Limits(max_text_chars=100, max_labels=4, max_label_chars=30, max_message_bytes=1000)
GUID = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")


def number(value: int) -> bytes:
    """Avro's zig-zag variable-length number."""
    zigzag = (value << 1) ^ (value >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def string(value: str) -> bytes:
    return number(len(value.encode())) + value.encode()


def record(*fields: tuple[str, Any]) -> str:
    return json.dumps({"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in fields]})


def read(writer: str, payload: bytes, reader: str | None = None) -> dict[str, Any]:
    return request.decode(payload, request.schema(writer), request.schema(reader or writer, reader=True))


def datum(**fields: Any) -> dict[str, Any]:
    return result.request({"id": "1", "text": "hello", "labels": ["a"], **fields})


def rejected(reason: Reason, **fields: Any) -> str:
    with pytest.raises(Rejection) as caught:
        request.request(datum(**fields), DEFAULTS, LIMITS)
    assert caught.value.reason is reason
    assert caught.value.stage == "validate"
    return str(caught.value)


class TestFrame:
    def test_confluent_schema_id_before_the_payload(self) -> None:
        value = b"\x00" + struct.pack(">I", 70_000) + b"payload"
        assert request.frame(value, ()) == Frame(Framing.CONFLUENT_ID, "70000", b"payload")

    def test_single_object(self) -> None:
        value = b"\xc3\x01" + bytes(range(8)) + b"payload"
        assert request.frame(value, ()) == Frame(Framing.SINGLE_OBJECT, "0001020304050607", b"payload")

    def test_confluent_guid_in_a_header_leaves_the_value_whole(self) -> None:
        headers: Headers = (("traceparent", b"x"), ("__value_schema_id", b"\x01" + GUID.bytes))
        assert request.frame(b"\x00payload", headers) == Frame(Framing.CONFLUENT_GUID, str(GUID), b"\x00payload")

    def test_confluent_schema_id_in_a_header(self) -> None:
        headers: Headers = (("__value_schema_id", b"\x00\x00\x00\x00\x07"),)
        assert request.frame(b"payload", headers) == Frame(Framing.CONFLUENT_ID, "7", b"payload")

    def test_a_header_without_a_value_says_nothing(self) -> None:
        assert request.frame(b"\x00\x00\x00\x00\x01", (("__value_schema_id", None),)).key == "1"

    @pytest.mark.parametrize("mark", [b"", b"\x01", b"\x01" + bytes(15), b"\x02" + bytes(16), b"\x00\x01"])
    def test_a_broken_header_is_malformed_even_where_the_value_would_do(self, mark: bytes) -> None:
        with pytest.raises(Rejection, match="__value_schema_id") as caught:
            request.frame(b"\x00\x00\x00\x00\x01", (("__value_schema_id", mark),))
        assert caught.value.reason is Reason.MALFORMED

    @pytest.mark.parametrize(
        "value", [b"", b"\x00", b"\x00\x00\x00\x01", b"\xc3", b"\xc3\x01" + bytes(7), b"\x01" + bytes(16), b'{"id": 1}']
    )
    def test_anything_else_is_malformed(self, value: bytes) -> None:
        with pytest.raises(Rejection) as caught:
            request.frame(value, ())
        assert (caught.value.reason, caught.value.stage) == (Reason.MALFORMED, "frame")

    def test_the_limit_counts_the_whole_value(self) -> None:
        request.frame(b"\x00" * 10, (), max_message_bytes=10)
        with pytest.raises(Rejection, match=r"11 bytes.*is 10") as caught:
            request.frame(b"\x00" * 11, (), max_message_bytes=10)
        assert caught.value.reason is Reason.TOO_LARGE


class TestFingerprint:
    @pytest.mark.parametrize(("text", "fingerprint"), [('"int"', 0x7275D51A3F395C8F), ('"null"', 0x63DD24E7CC258F8A)])
    def test_published_values_of_the_java_implementation(self, text: str, fingerprint: int) -> None:
        assert request.schema(text).fingerprint == fingerprint.to_bytes(8, "little").hex()

    def test_documentation_and_defaults_do_not_count(self) -> None:
        assert WRITER.fingerprint == READER.fingerprint


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
            read(record(("f", kind)), payload)
        assert caught.value.reason is Reason.MALFORMED

    @pytest.mark.parametrize(
        "payload", [number(3) + b"\xff\xfe\xfd", number(3) + "\ud800".encode("utf-8", "surrogatepass")]
    )
    def test_text_that_is_not_utf8_is_malformed(self, payload: bytes) -> None:
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
    def test_fields_nobody_reads_are_checked_too(self, kind: Any, payload: bytes) -> None:
        with pytest.raises(Rejection) as caught:
            read(record(("f", kind)), payload, record())
        assert caught.value.reason is Reason.MALFORMED

    @pytest.mark.parametrize(("items", "kind"), [(b"\x00", "string"), (b"\x00" * 4, "float")])
    def test_more_items_than_anyone_needs_are_too_large(self, items: bytes, kind: str) -> None:
        def payload(count: int) -> bytes:
            return number(count) + items * count + b"\x00"

        writer = record(("f", {"type": "array", "items": kind}))
        assert len(read(writer, payload(16_384))["f"]) == 16_384
        with pytest.raises(Rejection, match="16384 items") as caught:
            read(writer, payload(16_385))
        assert caught.value.reason is Reason.TOO_LARGE
        with pytest.raises(Rejection, match="16384 items"):
            read(writer, (number(1) + items) * 16_385 + b"\x00")

    def test_blocks_that_state_their_size_are_read(self) -> None:
        payload = number(-2) + number(2) + b"\x02\x04" + number(1) + b"\x06" + b"\x00"
        assert read(record(("f", {"type": "array", "items": "long"})), payload) == {"f": [1, 2, 3]}

    def test_maps_in_several_blocks_are_read(self) -> None:
        payload = number(1) + string("a") + string("x") + number(1) + string("b") + string("y") + b"\x00"
        assert read(record(("f", {"type": "map", "values": "string"})), payload) == {"f": {"a": "x", "b": "y"}}


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
            request.schema(text)
        assert caught.value.reason is Reason.SCHEMA

    def test_names_that_double_each_other_do_not_explode(self) -> None:
        # Forty levels, each of which holds the one below twice: 2**40 nulls in no bytes.
        kind: Any = "null"
        for level in range(20):
            fields = [{"name": "a", "type": kind}, {"name": "b", "type": f"L{level - 1}" if level else "null"}]
            kind = {"type": "record", "name": f"L{level}", "fields": fields}
        with pytest.raises(Rejection, match="without bytes"):
            request.schema(json.dumps(kind))

    def test_references_come_before_what_refers_to_them(self) -> None:
        note = json.dumps({"type": "record", "name": "n.Note", "fields": [{"name": "by", "type": "string"}]})
        writer = request.schema(record(("note", "n.Note"), ("again", "n.Note")), (note,))
        reader = request.schema(record(("again", json.loads(note))), reader=True)
        assert request.decode(string("x") + string("y"), writer, reader) == {"again": {"by": "y"}}

    def test_logical_types_are_read_as_they_lie(self) -> None:
        kinds: tuple[tuple[str, Any], ...] = (
            ("u", {"type": "string", "logicalType": "uuid"}),
            ("t", {"type": "long", "logicalType": "timestamp-millis"}),
            ("d", {"type": "bytes", "logicalType": "decimal", "precision": 4}),
        )
        payload = string("no uuid") + number(1 << 62) + number(2) + b"\xff\xff"
        assert read(record(*kinds), payload) == {"u": "no uuid", "t": 1 << 62, "d": b"\xff\xff"}

    def test_a_schema_that_does_not_resolve_is_the_schemas_fault(self) -> None:
        with pytest.raises(Rejection, match="does not resolve") as caught:
            read(record(("f", "string")), string("x"), record(("f", "int")))
        assert caught.value.reason is Reason.SCHEMA

    def test_a_field_without_a_default_must_be_written(self) -> None:
        with pytest.raises(Rejection, match="No default value for field g") as caught:
            read(record(("f", "string")), string("x"), record(("g", "string")))
        assert caught.value.reason is Reason.SCHEMA

    def test_a_union_at_the_root_resolves(self) -> None:
        assert read(f'["null", {TEXT}]', b"\x02" + result.to_bytes(datum(), WRITER), TEXT) == datum()


class TestRequest:
    def test_defaults_are_filled_in(self) -> None:
        got = request.request(datum(labels=["a", "b", "a"]), DEFAULTS, LIMITS)
        assert got.task is Task.CLASSIFY
        assert got.labels == ("a", "b", "a")
        assert got.hypotheses == ("This example is a.", "This example is b.", "This example is a.")
        assert (got.long_text, got.pooling, got.normalize) == (LongText.TRUNCATE, Pooling.MEAN, True)
        assert (got.top_k, got.threshold, got.language, got.multi_label) == (None, None, None, False)

    def test_what_the_request_says_wins(self) -> None:
        got = request.request(
            datum(hypothesis_template="É {}!", long_text="WINDOW_MEAN", pooling="CLS", normalize=False, top_k=9),
            DEFAULTS,
            LIMITS,
        )
        assert got.hypotheses == ("É a!",)
        assert (got.long_text, got.pooling, got.normalize, got.top_k) == (LongText.WINDOW_MEAN, Pooling.CLS, False, 9)

    def test_a_label_set_is_looked_up(self) -> None:
        got = request.request(datum(labels=[], label_set="moods"), DEFAULTS, LIMITS)
        assert got.labels == ("glad", "sad")
        assert "registered are moods" in rejected(Reason.INVALID, labels=[], label_set="mods")
        assert "one of the two" in rejected(Reason.INVALID, label_set="moods")

    def test_entail_takes_hypotheses_as_they_are(self) -> None:
        got = request.request(datum(task="ENTAIL", hypotheses=["{x} it {}", "b"]), DEFAULTS, LIMITS)
        assert (got.labels, got.hypotheses) == ((), ("{x} it {}", "b"))

    def test_embed_needs_a_text_alone(self) -> None:
        got = request.request(datum(task="EMBED", labels=[], hypothesis_template="{0.__class__}"), DEFAULTS, LIMITS)
        assert (got.labels, got.hypotheses) == ((), ())

    def test_a_label_is_text_and_never_a_format(self) -> None:
        got = request.request(datum(labels=["{0.__class__}", "{}"]), DEFAULTS, LIMITS)
        assert got.hypotheses == ("This example is {0.__class__}.", "This example is {}.")

    @pytest.mark.parametrize(
        "template",
        ["", "about", "{} {}", "{0}", "{x}", "{x.__class__}", "{!r}", "{:>9}", "{{}}", "{{}} {}", "} {", "{}}"],
    )
    def test_a_template_has_one_bare_gap(self, template: str) -> None:
        assert "hypothesis_template" in rejected(Reason.INVALID, hypothesis_template=template)
        with pytest.raises(SettingsError, match=r"model\.hypothesis_template"):
            replace(DEFAULTS, hypothesis_template=template)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"id": ""}, "id = ''"),
            ({"text": ""}, "text = ''"),
            ({"text": " \n\u3000"}, "text = "),
            ({"labels": []}, "labels = []"),
            ({"labels": ["a", " "]}, "labels[1] = ' '"),
            ({"task": "ENTAIL"}, "hypotheses = []"),
            ({"task": "ENTAIL", "hypotheses": [""]}, "hypotheses[0] = ''"),
            ({"language": ""}, "language = ''"),
            ({"top_k": 0}, "top_k = 0"),
            ({"top_k": -1}, "top_k = -1"),
            ({"threshold": float("nan")}, "threshold = nan"),
            ({"threshold": 1.0000001}, "threshold = 1.0000001"),
            ({"threshold": float("-inf")}, "threshold = -inf"),
        ],
    )
    def test_the_impossible_is_invalid(self, fields: dict[str, Any], named: str) -> None:
        assert named in rejected(Reason.INVALID, **fields)

    @pytest.mark.parametrize("threshold", [0.0, 1.0, -0.0])
    def test_the_ends_of_the_threshold_are_allowed(self, threshold: float) -> None:
        assert request.request(datum(threshold=threshold), DEFAULTS, LIMITS).threshold == threshold

    @pytest.mark.parametrize(
        ("fits", "over", "limit"),
        [
            ({"text": "x" * 100}, {"text": "x" * 101}, "max_text_chars is 100"),
            ({"labels": ["x"] * 4}, {"labels": ["x"] * 5}, "max_labels is 4"),
            ({"labels": ["x" * 30]}, {"labels": ["x" * 31]}, "max_label_chars is 30"),
            (
                {"hypothesis_template": "{}" + "x" * 28},
                {"hypothesis_template": "{}" + "x" * 29},
                "max_label_chars is 30",
            ),
            (
                {"task": "ENTAIL", "hypotheses": ["x"] * 4},
                {"task": "ENTAIL", "hypotheses": ["x"] * 5},
                "max_labels is 4",
            ),
            (
                {"task": "ENTAIL", "hypotheses": ["x" * 30]},
                {"task": "ENTAIL", "hypotheses": ["x" * 31]},
                "max_label_chars is 30",
            ),
        ],
    )
    def test_limits(self, fits: dict[str, Any], over: dict[str, Any], limit: str) -> None:
        request.request(datum(**fits), DEFAULTS, LIMITS)
        assert limit in rejected(Reason.TOO_LARGE, **over)

    def test_values_are_shown_shortened(self) -> None:
        message = rejected(Reason.INVALID, hypothesis_template="y" * 30, labels=["a"], text="x" * 100)
        assert len(message) < 300
        assert len(rejected(Reason.INVALID, language=" " * 10_000)) < 300
