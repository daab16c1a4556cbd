"""Calibration files: written and read again, refused where they are none, and for one model only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.learn.calibration_file import CalibrationFile, of_model, read, write
from worker.messages import ModelIdentity
from worker.rules.calibration import Isotonic, Platt

MODEL = ModelIdentity("some/model", "abc")
TOPICS: dict[str, Any] = {
    "format": 1,
    "name": "topics",
    "model": {"name": "some/model", "revision": "abc"},
    "multi_label": True,
    "labels": [
        {
            "label": "sport",
            "hypotheses": ["It is sport.", "Es ist Sport."],
            "curve": {"method": "platt", "slope": 1.5, "intercept": -0.25},
            "threshold": 0.75,
        },
        {
            "label": "money",
            "hypotheses": ["It is money."],
            "curve": {"method": "isotonic", "margins": [-1.0, 2.0], "probabilities": [0.1, 0.9]},
        },
    ],
}
MOODS: dict[str, Any] = TOPICS | {
    "name": "moods",
    "multi_label": False,
    "temperature": 1.5,
    "labels": [{"label": "glad", "hypotheses": ["It is glad."]}],
}


def file(**fields: Any) -> CalibrationFile:
    return CalibrationFile.model_validate(TOPICS | fields)


def put(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def said(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read(path)
    return str(caught.value)


def test_a_file_is_what_is_applied(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, "t.json", TOPICS))
    made = found.made()
    assert [known.curve for known in made.labels] == [Platt(1.5, -0.25), Isotonic((-1.0, 2.0), (0.1, 0.9))]
    assert [known.threshold for known in made.labels] == [0.75, None]
    assert (made.name, made.model, made.temperature) == ("topics", MODEL, None)


@given(
    slope=st.floats(1e-6, 1000),
    intercept=st.floats(-1000, 1000),
    points=st.dictionaries(st.floats(-30, 30), st.floats(0, 1), min_size=1, max_size=20),
    threshold=st.none() | st.floats(0, 1),
    words=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=2, max_size=2, unique=True
    ),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    slope: float,
    intercept: float,
    points: dict[float, float],
    threshold: float | None,
    words: list[str],
) -> None:
    curves = [
        {"method": "platt", "slope": slope, "intercept": intercept},
        {"method": "isotonic", "margins": sorted(points), "probabilities": sorted(points.values())},
    ]
    labels = [
        {"label": word, "hypotheses": [f"It is {word}."], "curve": curve, "threshold": threshold}
        for word, curve in zip(words, curves, strict=True)
    ]
    made = file(labels=labels, fitted={"examples": 3})
    path = tmp_path_factory.getbasetemp() / "again.json"
    write(made, path, replaces=True)
    assert read(path) == [made]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 2}, ["format = 2", "reads 1"]),
        ({"nmae": "x"}, ["nmae", "not permitted"]),
        ({"labels": []}, ["labels"]),
        ({"temperature": 2.0}, ["temperature", "compete"]),
        ({"multi_label": False}, ["temperature"]),
        ({"multi_label": False, "temperature": 0.0}, ["temperature = 0.0"]),
        ({"multi_label": False, "temperature": 2.0}, ["'sport'", "curve"]),
        ({"labels": [TOPICS["labels"][0], TOPICS["labels"][0]]}, ["'It is sport.'", "twice"]),
        ({"labels": [{"label": "a", "hypotheses": ["A."]}]}, ["'a'", "curve"]),
        *(
            ({"labels": [{"label": "a", "hypotheses": ["A."], "curve": curve}]}, words)
            for curve, words in (
                ({"method": "platt", "slope": -1.0, "intercept": 0.0}, ["slope = -1.0"]),
                ({"method": "platt", "slope": float("inf"), "intercept": 0.0}, ["slope"]),
                ({"method": "isotonic", "margins": [1.0, 0.0], "probabilities": [0.1, 0.2]}, ["do not rise"]),
                ({"method": "isotonic", "margins": [0.0, 1.0], "probabilities": [0.3, 0.2]}, ["fall"]),
                ({"method": "isotonic", "margins": [0.0, 1.0], "probabilities": [0.3]}, ["differ in number"]),
                ({"method": "isotonic", "margins": [*map(float, range(65))], "probabilities": [0.5] * 65}, ["64"]),
                ({"method": "spline"}, ["method"]),
            )
        ),
    ],
)
def test_what_is_no_calibration_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], words: list[str]) -> None:
    path = put(tmp_path, "c.json", TOPICS | fields)
    message = said(path)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in words), message
    assert len(message) < 1000


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": [1]}', "[" * 100_000, '{"format": "1"}', "\x00"])
def test_what_is_no_json_of_ours_is_refused(tmp_path: Path, content: str) -> None:
    assert str(tmp_path / "c.json") in said(put(tmp_path, "c.json", content))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in said(tmp_path / "c.json")
    assert "holds no *.json" in said(tmp_path)


def test_the_only_one_is_for_requests_that_name_none_and_of_several_that_called_default(tmp_path: Path) -> None:
    put(tmp_path, "topics.json", TOPICS)
    alone = of_model(read(tmp_path), MODEL)
    assert alone.find(None) is alone.find("topics") is not None
    put(tmp_path, "moods.json", MOODS)
    several = of_model(read(tmp_path), MODEL)
    assert (several.find(None), several.find("others")) == (None, None)
    assert several.find("moods") is not None
    put(tmp_path, "d.json", TOPICS | {"name": "default"})
    assert of_model(read(tmp_path), MODEL).find(None) is not None


def test_another_revision_is_refused_unless_there_is_one_of_that_name_for_this_one() -> None:
    other = ModelIdentity("some/model", "def")
    with pytest.raises(SettingsError, match=r"'topics' was fitted on some/model at abc, and the model is .* at def"):
        of_model([file()], other)
    newer = file(model={"name": "some/model", "revision": "def"})
    found = of_model([file(), newer], other).find("topics")
    assert found is not None
    assert found.model == other
    with pytest.raises(SettingsError, match="'topics' is there twice for abc"):
        of_model([file(), file()], replace(MODEL, name="elsewhere"))


def test_a_file_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write(file(), path, replaces=False)
    with pytest.raises(SettingsError, match="--force"):
        write(file(name="other"), path, replaces=False)
    write(file(name="other"), path, replaces=True)
    assert [found.name for found in read(path)] == ["other"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SettingsError, match="there is no folder"):
        write(file(), tmp_path / "no" / "c.json", replaces=False)
    with pytest.raises(SettingsError, match="is a folder"):
        write(file(), tmp_path, replaces=True)
