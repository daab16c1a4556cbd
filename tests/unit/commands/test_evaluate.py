"""`evaluate` and `calibrate` with the demo's checkpoint: what they print, write and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint import labelled
from tests.unit.http.served import Engine
from worker import settings
from worker.app import App
from worker.commands.calibrate import calibrate, wishes
from worker.commands.classify import classify
from worker.commands.evaluate import evaluate
from worker.commands.labelled import Given
from worker.errors import SettingsError
from worker.learn.fitting import Wanted
from worker.serve import Server

TOPICS = ["sport", "finance", "weather"]


@cache
def topics() -> tuple[dict[str, Any], ...]:
    """Some 70 texts, each about one of 15 topics, in all languages."""
    found = list(labelled.competing(0))
    return tuple(found[:: len(found) // 70])


@cache
def three() -> tuple[dict[str, Any], ...]:
    """Some 60 texts about three topics, which are judged each on its own."""
    found = [one for one in labelled.competing(0) if one["expected"] in TOPICS]
    apart = {"multi_label": True, "labels": [*TOPICS, "spam"]}
    return tuple(one | apart | {"expected": [one["expected"]]} for one in found[:: len(found) // 60])


def never() -> bool:
    return False


def put(folder: Path, lines: object, name: str = "examples.jsonl") -> Given:
    file = folder / name
    file.write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")  # type: ignore[attr-defined]
    return Given(str(file))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # "demo" is no folder here
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    monkeypatch.setenv("XNLI_MODEL__THREADS", "1")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XNLI_MODEL__DEVICE", "cpu")
        output = folder / "topics.json"
        assert calibrate(put(folder, topics()), output, never, precision=["0.9"], folds=3, seed=0, as_json=True)
        yield output


def fitted(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_report_is_json_in_a_pipe_and_a_page_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "quality.png"
    assert evaluate(put(tmp_path, topics()), never, page=page)
    out, err = capsys.readouterr()
    report = fitted(out)
    assert report["model"]["name"] == "demo"
    assert report["examples"] == report["asked"] == len(topics())
    assert set(report["labels"]) == set(topics()[0]["labels"])
    assert len(report["languages"]) == 15
    assert report["macro_f1"] > 0.8
    assert report["raw_calibration_error"] is None
    assert sum(cell["count"] for cell in report["confusion"]) == len(topics())
    assert page.read_bytes().startswith(b"\x89PNG")
    assert "model.name is not set" in err


def test_a_calibration_is_written_and_taken_by_every_command(
    calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = json.loads(calibration.read_text("utf-8"))
    assert (file["name"], file["multi_label"], file["format"]) == ("topics", False, 1)
    assert [one["label"] for one in file["labels"]] == topics()[0]["labels"]
    others = list(labelled.competing(1))[::20]
    assert evaluate(put(tmp_path, others), never, calibration=calibration)
    report = fitted(capsys.readouterr().out)
    assert report["calibration_error"]["value"] < report["raw_calibration_error"]["value"] / 2
    template = file["hypothesis_template"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XNLI_MODEL__CALIBRATION", str(calibration))
        text = others[0]["text"]
        assert classify(
            text, None, labels=",".join(topics()[0]["labels"]), multi_label=False, template=template, as_json=True
        )
        shown = fitted(capsys.readouterr().out)
        assert shown["labels"]
        assert all("calibrated" in one for one in shown["labels"])
        assert classify(text, None, labels="sport,spam", multi_label=False, template=template, as_json=True)
        assert all("calibrated" not in one for one in fitted(capsys.readouterr().out)["labels"])


def test_a_terminal_shows_tables_in_80_columns(
    calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("evaluate", "calibrate"):
        monkeypatch.setattr(f"worker.commands.{command}.is_wanted", lambda as_json: as_json)
    monkeypatch.setenv("COLUMNS", "80")
    assert evaluate(put(tmp_path, islice(topics(), 9)), never, calibration=calibration)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("precision", "language", "macro F1", "raw scores: calibration error"))
    assert calibrate(put(tmp_path, three()), tmp_path / "c.json", never, precision=["0.9"], folds=2, seed=0)
    told = capsys.readouterr().out
    assert all(word in told for word in ("threshold", "held out", "spam is not calibrated", "c.json"))
    lines = [line for line in (shown + told).splitlines() if "spam is not calibrated" not in line]
    assert max(len(line) for line in lines if "written to" not in line) <= 80


def test_labels_on_their_own_get_curves_and_those_with_few_examples_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "apart.json"
    assert calibrate(put(tmp_path, three()), output, never, best_f1=True, recall=["sport=0.9"], folds=3, seed=0)
    told = fitted(capsys.readouterr().out)
    assert {one["label"] for one in told["labels"]} == set(TOPICS)
    assert list(told["uncalibrated"]) == ["spam"]
    assert all(one["method"] == "platt" and 0 < one["threshold"] <= 1 for one in told["labels"])
    assert next(one for one in told["labels"] if one["label"] == "sport")["recall"] >= 0.9


def test_ctrl_c_keeps_what_is_done_and_writes_no_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [one | {"id": str(i)} for i, one in enumerate(topics() * 3)]
    given = put(tmp_path, lines)
    assert not evaluate(given, lambda: True)
    out, err = capsys.readouterr()
    assert 0 < fitted(out)["examples"] < len(lines) == fitted(out)["asked"]
    assert "stopped: " in err
    assert not calibrate(given, tmp_path / "c.json", lambda: True, folds=3, seed=0)
    assert "nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_an_example_that_cannot_be_scored_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*topics()[:3], {"text": "We won.", "labels": ["word " * 600, "sport"], "expected": "sport"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XNLI_LIMITS__MAX_LABEL_CHARS", "4000")
        assert not evaluate(put(tmp_path, lines), never)
    out, err = capsys.readouterr()
    assert fitted(out)["examples"] == 3
    assert "examples.jsonl:4: not scored" in err


def test_a_label_sets_wording_and_tree_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {
        "labels": [{"label": "games", "children": ["sport", "chess"]}, {"label": "money", "threshold": 0.9}],
        "hypothesis_template": "The subject of this text is {}.",
        "multi_label": True,
    }
    (tmp_path / "tree.json").write_text(json.dumps(made), "utf-8")
    lines = [{"text": one["text"], "expected": ["sport"]} for one in three() if one["expected"] == ["sport"]]
    given = put(tmp_path, lines)
    typed = Given(given.file, label_set=tmp_path / "tree.json")
    assert evaluate(typed, never)
    report = fitted(capsys.readouterr().out)
    assert report["labels"]["sport"]["support"] == len(lines)
    assert set(report["labels"]) <= {"games", "sport", "chess", "money"}
    with pytest.raises(SettingsError, match="money: 0 of"):
        calibrate(typed, tmp_path / "c.json", never, folds=3, seed=0)
    made["multi_label"] = False
    (tmp_path / "tree.json").write_text(json.dumps(made), "utf-8")
    with pytest.raises(SettingsError, match=r"examples\.jsonl:1: labels that compete in a tree are not calibrated"):
        calibrate(typed, tmp_path / "c.json", never, folds=3, seed=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(), "name a file of examples"),
        (Given("e.csv", topic="t"), "name a file of examples"),
        (Given("e.csv", labels="a,b"), r"e\.csv:1: expected = 'sport': is none of the candidates"),
        (Given("e.csv", labels="a,b", label_set=Path("s.json")), "--labels and --label-set"),
        (Given("e.csv", label_set=Path("s.json")), r"s\.json: cannot be read"),
        (Given("nowhere.csv"), "No such file"),
        (Given("e.csv", template="no place"), "hypothesis_template = 'no place'"),
        (Given("e.csv", model="./nowhere"), "nowhere"),
    ],
)
def test_what_was_typed_wrongly_is_told(given: Given, said: str, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("We won.,sport\nRates rose.,money\n", "utf-8")
    with pytest.raises(SettingsError, match=said):
        evaluate(given, never)


@pytest.mark.parametrize(
    ("page", "said"), [("page.jpg", "call the file page.png"), (".", "is a folder"), ("no/p.png", "there is no folder")]
)
def test_a_page_that_cannot_be_is_refused_before_the_work(page: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        evaluate(Given("nowhere.csv"), never, page=Path(page))


@pytest.mark.parametrize(
    ("precision", "recall", "best_f1", "said"),
    [
        (["0.9", "0.8"], [], False, "--precision 0.8: of all labels"),
        (["0.9"], ["0.8"], False, "--recall 0.8: of all labels"),
        (["0.9"], [], True, "--best-f1"),
        (["a=0.9", "a=0.8"], [], False, "--precision a=0.8: of this label"),
        (["much"], [], False, "--precision much: write a share"),
        (["a=1.5"], [], False, "--precision a=1.5: write a share"),
    ],
)
def test_wishes_that_contradict_are_refused(precision: list[str], recall: list[str], best_f1: bool, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        wishes(precision, recall, best_f1=best_f1)


def test_a_wish_is_for_all_labels_or_for_one() -> None:
    wanted, of_label = wishes(["0.9", "a=b=0.8"], ["c=0.7"], best_f1=False)
    assert wanted == Wanted("precision", 0.9)
    assert of_label == {"a=b": Wanted("precision", 0.8), "c": Wanted("recall", 0.7)}


@pytest.mark.parametrize("kind", [App, Server])
def test_a_worker_refuses_to_start_with_a_calibration_of_another_revision(
    kind: type[App | Server], calibration: Path
) -> None:
    made = kind(
        settings.load(
            environ={
                "XNLI_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
                "XNLI_MODEL__NAME": "demo",
                "XNLI_MODEL__CALIBRATION": str(calibration),
                "XNLI_HTTP__PORT": "0",
            }
        ),
        engine=Engine(),
    )
    with pytest.raises(SettingsError, match=r"model\.calibration: 'topics' was fitted on demo at sha256:.* at 1"):
        made.run(never)


@pytest.mark.parametrize(
    ("more", "wished", "said"),
    [
        ([], [], "there are 2 examples, and a temperature takes 50"),
        ([{"text": "x", "labels": ["a", "c"], "expected": "a"}], [], r"e\.jsonl:3: its candidates are others"),
        ([{"text": "x", "labels": ["a"], "expected": []}], [], r"e\.jsonl:3: labels compete in some examples"),
        ([], ["z=0.9"], "no example has the label 'z'"),
    ],
)
def test_what_cannot_be_calibrated_is_told_before_a_model_is_loaded(
    tmp_path: Path, more: list[dict[str, Any]], wished: list[str], said: str
) -> None:
    lines = [{"text": text, "labels": ["a", "b"], "expected": "a"} for text in ("one", "two")]
    given = Given(put(tmp_path, [*lines, *more], "e.jsonl").file, model="./nowhere")
    with pytest.raises(SettingsError, match=said):
        calibrate(given, tmp_path / "c.json", never, precision=wished, folds=2, seed=0)


def test_a_label_needs_a_hypothesis_of_its_own(tmp_path: Path) -> None:
    lines = [{"text": f"text {i}", "labels": ["a", "b"], "expected": "ab"[i % 2]} for i in range(50)]
    made = {"labels": [{"label": label, "hypothesis": "It is so."} for label in "ab"]}
    (tmp_path / "set.json").write_text(json.dumps(made), "utf-8")
    given = put(tmp_path, [{"text": one["text"], "expected": one["expected"]} for one in lines], "e.jsonl")
    typed = Given(given.file, label_set=tmp_path / "set.json")
    with pytest.raises(SettingsError, match="'a' and 'b' have one hypothesis"):
        calibrate(typed, tmp_path / "c.json", never, folds=2, seed=0)
