"""Whatever a stranger sends is answered by a request or a rejection, with work in proportion to its length."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.builders import label_sets
from tests.examples import examples
from tests.fastavro_bytes import to_bytes
from tests.property.schemas import names, records, schemas
from worker.avro import binary, framing, json_request, request, schema_walk
from worker.avro.codec import Codecs
from worker.avro.request import Defaults, Limits
from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Request, Task

CODECS = Codecs()
REQUEST = CODECS.writer_schema(
    framing.frame(CODECS.encode_request(json_request.request({"id": "", "text": ""}))[0], ())
)
DEFAULTS = Defaults("This is {}.", LongText.TRUNCATE, Pooling.MEAN, normalize=True, label_sets=label_sets(a=["x", "y"]))
LIMITS = Limits(max_text_chars=50, max_labels=5, max_label_chars=10, max_message_bytes=500)

texts = st.text(st.characters(codec="utf-8"), max_size=12)
requests = st.fixed_dictionaries(
    {"id": texts, "text": texts},
    optional={
        "task": st.sampled_from(list(Task)),
        "labels": st.lists(texts, max_size=6),
        "label_set": st.none() | st.sampled_from(["a", "b"]),
        "hypothesis_template": st.none() | texts | st.sampled_from(["{}", "is {}", "{0}", "{{}}"]),
        "multi_label": st.booleans(),
        "hypotheses": st.lists(texts, max_size=6),
        "language": st.none() | texts,
        "top_k": st.none() | st.integers(-(2**31), 2**31 - 1),
        "threshold": st.none() | st.floats(),
        "long_text": st.none() | st.sampled_from(list(LongText)),
        "pooling": st.none() | st.sampled_from(list(Pooling)),
        "normalize": st.none() | st.booleans(),
        "attributes": st.dictionaries(texts, texts, max_size=3),
    },
)


def receive(value: bytes, headers: tuple[tuple[str, bytes | None], ...] = ()) -> Request | Rejection:
    try:
        return request.request(CODECS.read_request(value, headers, LIMITS.max_message_bytes), DEFAULTS, LIMITS)
    except Rejection as rejection:
        return rejection


@given(st.binary(max_size=60))
def test_bytes_at_random(value: bytes) -> None:
    assert isinstance(receive(value), Rejection)


@given(st.binary(max_size=60))
@example(b"\x00" * 15)
def test_payloads_at_random(payload: bytes) -> None:
    receive(b"\xc3\x01" + bytes.fromhex(REQUEST.fingerprint) + payload)


@given(st.binary(max_size=30), st.none() | st.binary(max_size=20))
def test_headers_at_random(value: bytes, mark: bytes | None) -> None:
    receive(value, (("__value_schema_id", mark),))


@given(requests, st.data())
@settings(max_examples=examples(300))
def test_valid_messages_with_a_few_bytes_changed(fields: dict[str, Any], data: st.DataObject) -> None:
    value = bytearray(CODECS.encode_request(json_request.request(fields))[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(value)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip" if at < len(value):
                value[at] = data.draw(st.integers(0, 255))
            case "cut":
                del value[at:]
            case "insert":
                value[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            case "drop":
                del value[at : at + data.draw(st.integers(1, 9))]
            case _:
                pass
    receive(bytes(value))


@given(requests)
def test_what_is_written_is_what_is_read(fields: dict[str, Any]) -> None:
    datum = json_request.request(fields)
    read = CODECS.read_request(*CODECS.encode_request(datum))
    assert json.dumps(read) == json.dumps(datum)  # as text, for NaN is not equal to itself


@given(requests)
def test_a_request_answers_to_what_it_promises(fields: dict[str, Any]) -> None:
    got = receive(CODECS.encode_request(json_request.request(fields))[0])
    if isinstance(got, Rejection):
        assert got.reason in {Reason.INVALID, Reason.TOO_LARGE}
        return
    assert got.id
    assert got.text.strip()
    assert len(got.hypotheses) == (0 if got.task is Task.EMBED else len(got.labels) or len(fields["hypotheses"]))
    assert all(label in sentence for label, sentence in zip(got.labels, got.hypotheses, strict=False))
    assert all(s.strip() for s in got.hypotheses)
    assert got.top_k is None or got.top_k >= 1
    assert got.threshold is None or 0 <= got.threshold <= 1


def python_calls(payload: bytes) -> int:
    """How many Python functions the check of a payload calls: its work, free of the clock's noise."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        schema_walk.check(payload, REQUEST)
    except Exception:  # noqa: BLE001, S110 (how it ends is the concern of other tests)
        pass
    finally:
        sys.setprofile(before)
    return calls


@given(st.binary(max_size=400) | st.binary(max_size=20).map(lambda piece: piece * 30))
@example(b"\x00\x00\x00" + b"\x02\x00" * 300)
@example(b"\x00\x00\x00" + b"\x01\x02\x00" * 300)
@example(b"\x00\x00\x00" + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 30)
def test_work_is_bounded_by_length(payload: bytes) -> None:
    assert python_calls(payload) <= 30 + 3 * len(payload)


@given(st.builds(records, names, st.lists(schemas, max_size=4)), st.data())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
def test_the_walk_ends_where_the_datum_ends_in_any_schema(
    pair: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    kind, values = pair
    try:
        compiled = schema_walk.schema(json.dumps(kind))
    except Rejection as rejection:
        # Arrays of values without bytes, or one of our random names used twice.
        assert "without bytes" in str(rejection) or "redefined" in str(rejection)  # noqa: PT017 (not every time)
        return
    payload = to_bytes(data.draw(values), compiled)
    binary.decode(payload, compiled, compiled)
    if payload:
        with pytest.raises(Rejection) as caught:
            binary.decode(payload[: data.draw(st.integers(0, len(payload) - 1))], compiled, compiled)
        assert caught.value.reason is Reason.MALFORMED
    with pytest.raises(Rejection):
        binary.decode(payload + b"\x00", compiled, compiled)
