from __future__ import annotations

import json

import pytest

from worker.avro.codec import REQUEST, schema_folder
from worker.avro.json_request import request
from worker.errors import Reason, Rejection


def test_json_requests_have_the_fields_and_defaults_of_the_schema() -> None:
    fields = json.loads((schema_folder() / REQUEST).read_text("utf-8"))["fields"]
    read = request({"id": "1", "text": "t"})
    assert list(read) == [field["name"] for field in fields]
    assert read == {"id": "1", "text": "t", **{f["name"]: f["default"] for f in fields if "default" in f}}


def test_json_requests_may_ask_for_the_impossible() -> None:
    assert request({"id": "", "text": "", "top_k": -1})["top_k"] == -1


def test_a_whole_number_is_a_threshold() -> None:
    assert request({"id": "1", "text": "t", "threshold": 1})["threshold"] == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"id": "1"}, "text is required"),
        ({"id": "1", "text": "t", "lables": []}, "lables is no field of a request; fields are id, text, task"),
        ({"id": 1, "text": "t"}, "id = 1: "),
        ({"id": "1", "text": "t", "labels": ["a", 2]}, "labels.1 = 2: "),
        ({"id": "1", "text": "t", "task": "classify"}, "task = 'classify': "),
        ({"id": "1", "text": "t", "multi_label": "yes"}, "multi_label = 'yes': "),
        ({"id": "1", "text": "t", "top_k": True}, "top_k = True: "),
        ({"id": "1", "text": "t", "top_k": 2**31}, "top_k = 2147483648: "),
        ({"id": "1", "text": "t", "attributes": {"a": 1}}, "attributes.a = 1: "),
        ({"id": "1", "text": "\ud800"}, r"text = '\ud800': "),
        ({"id": "1", "text": "t", "attributes": {"\udfff": "x"}}, "attributes"),
        (["id", "text"], "the line = ['id', 'text']: "),
        ("hello", "the line = 'hello': "),
    ],
)
def test_json_that_is_no_request_is_refused_by_field(line: object, what: str) -> None:
    with pytest.raises(Rejection) as caught:
        request(line)
    assert caught.value.reason is Reason.INVALID
    assert what in str(caught.value)
    str(caught.value).encode()  # can be printed, whatever was in it
