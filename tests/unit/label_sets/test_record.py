"""What the value of a label set's record may be, and what is said of what it may not be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents.command_lines import ROOT
from worker.avro.codec import schema_folder
from worker.commands import label_set_files
from worker.label_sets import record
from worker.label_sets.record import MAX_DEPTH, MAX_LABELS, RefusedError
from worker.messages import LabelSetVersion, Taxonomy

VERSION = LabelSetVersion("set", "1")
EXAMPLES = sorted((schema_folder() / "examples").glob("label-set-*.json"))


def refused(value: object) -> str:
    with pytest.raises(RefusedError) as caught:
        record.read("set", json.dumps(value).encode())
    return str(caught.value)


def test_the_published_schema_is_that_of_the_models() -> None:
    published = json.loads((schema_folder() / "label-set.schema.json").read_text("utf-8"))
    assert published == record.json_schema(), "run python -m tests.documents.label_set_schema"


def test_every_field_of_the_schema_is_explained() -> None:
    for name, model in record.json_schema()["$defs"].items():
        for field, said in model.get("properties", {}).items():
            assert len(said.get("description", "")) > 8, f"{name}.{field}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sets(path: Path) -> None:
    made = record.read(path.stem.removeprefix("label-set-"), path.read_bytes())
    assert made.complete(VERSION, "de", "{}").hypotheses


def test_the_sets_that_the_documents_print_are_sets(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "label-sets.md").read_text("utf-8")
    blocks = re.findall(r"^```(json|toml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = [(kind, block) for kind, block in blocks if "labels =" in block or '"labels":' in block]
    assert [kind for kind, _ in printed] == ["json", "toml"]
    for kind, block in printed:
        file = tmp_path / f"set.{kind}"
        file.write_text(block, encoding="utf-8")
        assert label_set_files.read([file], None)


def test_a_bare_array_is_what_it_always_was() -> None:
    made = record.read("set", b'["a", "b", "a"]').complete(VERSION, "de", "About {}.")
    assert made.labels == ("a", "b", "a")
    assert made.hypotheses == ("About a.", "About b.", "About a.")
    assert (made.taxonomy, made.thresholds, made.multi_label) == (None, (), False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"labels": []}, "labels = []: The array should have at least 1 item"),
        ({"labels": {"a": 1}}, "labels = {'a': 1}: Input should be a valid array"),
        ({"labels": ["a"], "hypothesis_template": {"de": "{}", "DE": "{}."}},
         "hypothesis_template = {'de': '{}', 'DE': '{}.'}: two of its keys are one language"),
        ({"labels": ["a", {"label": "b", "children": [{"label": "c", "threshold": 1.5}]}]},
         "labels[1].children[0].threshold = 1.5: "),
        ({"labels": [{"label": "a", "threshold": "0.5"}]}, "labels[0].threshold = '0.5': "),
        ({"labels": [{"label": "a", "threshold": True}]}, "labels[0].threshold = True: "),
        ({"labels": [{"label": "a", "treshold": 0.5}]}, "labels[0].treshold is no field; fields are label, hypothesis"),
        ({"labels": [{"children": ["a"]}]}, "labels[0].label is missing"),
        ({"labels": ["a", " "]}, "labels[1] = ' ': is blank"),
        ({"labels": [["a"]]}, "labels[0] = ['a']: "),
        ({"labels": ["a"], "top_k": 0}, "top_k = 0: "),
        ({"labels": ["a"], "beam": 0}, "beam = 0: "),
        ({"labels": ["a"], "beam": 1.5}, "beam = 1.5: "),
        ({"labels": ["a"], "evidence": -1}, "evidence = -1: "),
        ({"labels": ["a"], "multi_label": "yes"}, "multi_label = 'yes': "),
        ({"labels": ["a"], "long_text": "CUT"}, "long_text = 'CUT': "),
        ({"labels": ["a"], "version": ""}, "version = '': is blank"),
        ({"labels": ["a"], "version": 7}, "version = 7: "),
        ({"labels": ["a"], "version": "x" * 201}, "version = 'xxx"),
        ({"labels": ["a"], "name": "other"}, "name = 'other': the key of the record is 'set'"),
        ({"labels": ["a"], "hypothesis_template": {}}, "hypothesis_template = {}: "),
        ({"labels": ["a"], "hypothesis_template": {"d e": "{}"}}, "hypothesis_template.d e = 'd e': is no language"),
        ({"labels": ["a", {"label": "b"}, {"label": "a"}]}, "labels[2] = 'a': labels[0] beside it is the same"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_by_its_place(value: object, said: str) -> None:
    assert refused(value).startswith(said)


def test_json_that_says_one_thing_twice_is_refused() -> None:
    with pytest.raises(RefusedError, match="the key 'threshold' stands twice"):
        record.read("set", b'{"labels": ["a"], "threshold": 0.1, "threshold": 0.2}')


def test_what_is_nested_too_deeply_to_be_shown_is_refused_too() -> None:
    for depth in (500, 900, 960, 990):
        with pytest.raises(RefusedError):
            record.read("set", b'{"labels": ["a"], "description": ' + b"[" * depth + b"]" * depth + b"}")


def test_no_number_is_no_threshold() -> None:
    with pytest.raises(RefusedError, match=r"^threshold = nan: "):
        record.read("set", b'{"labels": ["a"], "threshold": NaN}')


def deep(levels: int) -> dict[str, Any]:
    node: dict[str, Any] = {"label": "l"}
    for _ in range(levels - 1):
        node = {"label": "l", "children": [node]}
    return {"labels": [node]}


def test_a_tree_has_limits_of_its_own() -> None:
    record.read("set", json.dumps(deep(MAX_DEPTH)).encode())
    assert "more than 8 levels" in refused(deep(MAX_DEPTH + 1))
    assert "more than 8 levels" in refused(deep(400))
    half = [f"{i}" for i in range(MAX_LABELS // 2 - 1)]
    fits = {"labels": [{"label": "a", "children": half}, {"label": "b", "children": half}]}
    assert len(record.read("set", json.dumps(fits).encode()).complete(VERSION, None, "{}").labels) == MAX_LABELS
    assert "more than 4096" in refused({"labels": [*fits["labels"], "c"]})
    assert "4096" in refused([str(i) for i in range(MAX_LABELS + 1)])


@given(st.recursive(st.just([]), lambda trees: st.lists(trees, max_size=4), max_leaves=30).filter(bool))
def test_parents_stand_before_their_children(shape: list[Any]) -> None:
    counted = iter(range(10_000))

    def entries(shapes: list[Any], parent: int) -> list[Any]:
        found = []
        for below in shapes:
            number = next(counted)
            expected.append(parent)
            children = entries(below, number)
            found.append({"label": str(number), "children": children} if children else str(number))
        return found

    expected: list[int] = []
    made = record.checked({"labels": entries(shape, -1), "beam": 3}, None)
    if any(level > MAX_DEPTH for _, _, level in record.nodes(made.labels)):
        return
    completed = made.complete(VERSION, None, "{}")
    assert completed.labels == tuple(str(i) for i in range(len(expected)))
    flat = all(parent < 0 for parent in expected)
    assert completed.taxonomy == (None if flat else Taxonomy(tuple(expected), 3))


def test_a_wording_is_a_sentence_or_a_template_and_a_label_is_text() -> None:
    made = record.checked(
        {
            "labels": [
                {"label": "{0}", "hypothesis": "Somebody is insulted."},
                {"label": "{1}", "hypothesis": "It is {}, no doubt."},
                {"label": "{}", "hypothesis": {"fr": "C'est {}."}},
            ],
            "hypothesis_template": {"en": "About {}."},
        },
        "set",
    )
    assert made.languages == {"en", "fr"}
    ours = "Ours: {}."
    assert made.complete(VERSION, "en", ours).hypotheses == (
        *("Somebody is insulted.", "It is {1}, no doubt.", "About {}."),
    )
    assert made.complete(VERSION, "fr-ca", ours).hypotheses[2] == "C'est {}."
    assert made.complete(VERSION, None, ours).hypotheses[2] == "Ours: {}."
