"""Files of labelled examples as people write them, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.learn.examples import Defaults, Example, expected_in, read


def given(tmp_path: Path, text: str | bytes, name: str = "examples", **defaults: object) -> list[Example]:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(file, Defaults(**defaults))  # type: ignore[arg-type]


def said(tmp_path: Path, text: str | bytes, name: str = "examples", **defaults: object) -> str:
    with pytest.raises(SettingsError) as caught:
        given(tmp_path, text, name, **defaults)
    return str(caught.value)


@pytest.mark.parametrize("header", ["", "text,label\n", "\N{ZERO WIDTH NO-BREAK SPACE}Text , Label\r\n", "\n"])
def test_two_columns_are_a_text_and_its_label(tmp_path: Path, header: str) -> None:
    first, second = given(tmp_path, header + 'We won.,sport\n"Rates rose, again.",money\n')
    assert (first.text, first.expected, first.labels) == ("We won.", ("sport",), ("sport", "money"))
    assert second.text == "Rates rose, again."
    assert second.id != first.id


def test_a_header_names_columns_in_any_order(tmp_path: Path) -> None:
    (one,) = given(tmp_path, "label,language,text,id\nsport,de,Sieg!,7\n", labels=("sport", "money"))
    assert one == Example("7", "Sieg!", ("sport", "money"), ("sport",), "de", place=one.place)


def test_labels_of_a_cell_stand_between_bars(tmp_path: Path) -> None:
    first, second = given(tmp_path, "You fool!,insult|spam\nHello.,\n", multi_label=True)
    assert (first.expected, second.expected) == (("insult", "spam"), ())
    assert second.labels == ("insult", "spam")


def test_json_lines_have_the_fields_of_a_request_and_what_is_expected(tmp_path: Path) -> None:
    text = """{"id": "a", "text": "x", "labels": ["p", "q"], "expected": "q", "language": "fr", "threshold": 0.9}

{"text": "y", "label_set": "topics", "expected": ["p"], "hypothesis_template": "It is {}.", "long_text": "WINDOW_MAX"}
{"id": "c", "text": "z", "labels": ["p", "a, b"], "multi_label": true, "attributes": {"expected": "a, b"}}
"""
    first, second, third = given(tmp_path, text, hypothesis_template="T {}.")
    assert (first.id, first.language, first.expected, first.hypothesis_template) == ("a", "fr", ("q",), "T {}.")
    assert first.threshold == first.fields["threshold"] == 0.9
    assert (second.id, second.labels, second.label_set) == ("line-3", (), "topics")
    assert second.fields == {
        "id": "line-3",
        "text": "y",
        "label_set": "topics",
        "multi_label": False,
        "hypothesis_template": "It is {}.",
        "long_text": "WINDOW_MAX",
    }
    assert third.expected == ("a, b",)


def test_a_line_without_candidates_gets_all_that_are_expected_anywhere(tmp_path: Path) -> None:
    first, second = given(tmp_path, '{"text": "x", "expected": "p"}\n{"text": "y", "expected": "q"}\n')
    assert first.labels == second.labels == ("p", "q")


@pytest.mark.parametrize(
    ("attribute", "found"),
    [("a, b", ["a, b"]), ("a,c", ["a", "c"]), ('["c", "a, b"]', ["c", "a, b"]), ("", []), (" a ", ["a"])],
)
def test_the_attribute_is_one_candidate_an_array_or_a_list_with_commas(attribute: str, found: list[str]) -> None:
    assert expected_in(attribute, ["a, b", "a", "c"]) == found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "x"}', ["expected", "missing"]),
        ('{"text": "x", "expected": "p", "labels": ["q"]}', ["expected", "'p'", "none of the candidates"]),
        ('{"text": "x", "expected": ["p", "q"], "labels": ["p", "q"]}', ["expected names 2", "multi_label"]),
        ('{"text": "x", "expected": [], "labels": ["p", "q"]}', ["expected names 0"]),
        ('{"text": "x", "expected": 7}', ["expected", "7"]),
        ('{"text": " ", "expected": "p"}', ["text", "seen"]),
        ('{"expected": "p"}', ["text is required"]),
        ('{"text": "x", "expected": "p", "label": "p"}', ["label is no field", "expected"]),
        ('{"text": "x", "expected": "p", "labels": ["p", "p"]}', ["labels", "'p' twice"]),
        ('{"text": "x", "expected": "p", "labels": ["p", ""]}', ["labels", "blank"]),
        ('{"text": "x", "expected": "p", "labels": ["p"], "label_set": "s"}', ["label_set", "keep one"]),
        ('{"text": "x", "expected": "p", "task": "EMBED"}', ["task = EMBED", "CLASSIFY"]),
        ('{"text": "x", "expected": "p", "hypothesis_template": "no"}', ["hypothesis_template = 'no'", "{}"]),
        ('{"text": "x", "text": "y", "expected": "p"}', ["'text'", "twice"]),
        ('{"text": "x", "expected": "p"', ["no JSON", "column"]),
        ('{"text": "x", "expected": "p", "attributes": {"expected": "[1"}} ', []),
        ("[" * 100_000, ["recursion"]),
        ("text without a label", ["1 cells", "quotes"]),
        ('{"text": "x", "labels": ["p", "q"], "attributes": {"expected": "[1"}}', ["attributes.expected", "array"]),
    ],
)
def test_what_is_no_example_is_named_with_file_line_and_mend(tmp_path: Path, line: str, words: list[str]) -> None:
    if not words:
        assert given(tmp_path, line)
        return
    message = said(tmp_path, line)
    assert f"{tmp_path / 'examples'}:1: " in message
    assert all(word in message for word in words), message
    assert len(message) < 1000


def test_several_findings_are_told_at_once_and_not_thousands(tmp_path: Path) -> None:
    assert len(said(tmp_path, '{"text": "x"}\n' * 1000).splitlines()) == 5


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "e.csv", ["no examples"]),
        (b'{"text": "x", "expected": "p\xff"}', "e", [":1: ", "UTF-8"]),
        (b"x,p\ny\xff,q\n", "e.csv", [":2: ", "UTF-8"]),
        (b'x,"p\n', "e.csv", [":1: ", "no CSV"]),
        (b"x,p\ny,q\nz,\n", "e.csv", [":3: ", "expected names 0"]),
        (b"x,p,z\n", "e.csv", ["3 cells in place of 2"]),
    ],
)
def test_what_is_no_file_of_examples_is_refused(tmp_path: Path, content: bytes, name: str, words: list[str]) -> None:
    message = said(tmp_path, content, name)
    assert all(word in message for word in words), message


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^nowhere\.csv: No such file"):
        read(Path("nowhere.csv"))
