from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.commands.request_source import read


def lines(text: str) -> list[bytes]:
    return [line.encode() for line in text.splitlines(keepends=True)]


def values(text: str) -> list[Any]:
    """Each request, and for what is none the line it is in."""
    found = [given for given in read(lines(text), ()) if given.fields is not None or given.refused is not None]
    return [given.fields if given.fields is not None else given.line for given in found]


A, B, C = ({"id": name, "text": f'of {name}, \\ and "{{[\u00fc', "labels": ["x", "y"]} for name in "abc")


@pytest.mark.parametrize(
    "text",
    [
        "".join(json.dumps(value) + "\n" for value in (A, B, C)),
        "\ufeff" + "\r\n\r\n".join(json.dumps(value) for value in (A, B, C)),
        "\n".join(json.dumps(value, indent=2) for value in (A, B, C)),
        "".join(json.dumps(value, indent=2) for value in (A, B, C)),
        json.dumps([A, B, C]),
        json.dumps([A, B, C], indent=4) + "\n",
        json.dumps([A, B]) + "\n" + json.dumps(C, indent=1),
        " ".join(json.dumps(value) for value in (A, B, C)),
    ],
)
def test_requests_however_they_are_written(text: str) -> None:
    assert values(text) == [A, B, C]


@pytest.mark.parametrize(
    "bad", ["{]", "nonsense", '{"id": "1", "text": "x"', '{"id": "1', '{"id": 1,, }', "[" * 100_000]
)
def test_what_is_none_costs_itself_alone(bad: str) -> None:
    assert values(f"{json.dumps(A)}\n{bad}\n{json.dumps(B)}\n{json.dumps(C)}\n") == [A, 2, B, C]


def test_a_file_that_breaks_off_says_where_the_last_began() -> None:
    text = json.dumps(A) + "\n" + json.dumps(B, indent=2)[:-5]
    assert values(text) == [A, 2]


@given(st.lists(st.text(alphabet='{}[]",:\\ a1\n', max_size=30), max_size=6))
def test_every_byte_is_accounted_for(texts: list[str]) -> None:
    source = lines("\n".join(texts))
    assert sum(given.size_bytes for given in read(source, ())) == sum(map(len, source))


def test_labels_are_for_those_that_name_none() -> None:
    text = json.dumps([{"id": "1"}, {"id": "2", "labels": ["own"]}, {"id": "3", "label_set": "s"}])
    found = [given.fields for given in read(lines(text), ["a", "b"])]
    assert found == [
        {"id": "1", "labels": ["a", "b"]},
        {"id": "2", "labels": ["own"]},
        {"id": "3", "label_set": "s"},
    ]


def test_a_row_that_does_not_fit_is_refused_alone() -> None:
    found = list(read(lines("id,text\n1,one\n2,two,three\n3,three\n"), ()))
    assert [given.line for given in found if given.refused is not None] == [3]
    assert [given.fields["id"] for given in found if given.fields is not None] == ["1", "3"]
