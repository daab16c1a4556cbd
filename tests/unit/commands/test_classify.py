from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.http.served import served
from worker import screen
from worker.commands.classify import _in_context, classify
from worker.errors import FatalError, SettingsError
from worker.messages import Evidence, Span
from worker.screen import Screen


def test_texts_of_stdin_are_scored_one_by_one_and_a_bad_one_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # "demo" is no folder here
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    monkeypatch.setenv("XNLI_LIMITS__MAX_TEXT_CHARS", "100")
    given = (
        b"The room was beautiful and breakfast was perfect.\n\n"
        + b"x" * 101
        + b"\na caf\xe9\nA terrible hotel, never again.\n"
    )
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given), isatty=lambda: False))
    assert not classify(None, None, labels="positive, negative", multi_label=False, template=None, as_json=False)
    out, err = capsys.readouterr()
    first, second = [json.loads(line) for line in out.splitlines()]
    assert [label["label"] for label in first["labels"]] == ["positive", "negative"]
    assert [label["label"] for label in second["labels"]] == ["negative", "positive"]
    assert first["model"]["name"] == "demo"
    assert sum(label["score"] for label in first["labels"]) == pytest.approx(1, abs=1e-4)
    assert "model.name is not set" in err
    assert "text has 101 characters" in err
    assert "stdin:4: no UTF-8 (invalid continuation byte at byte 5)" in err


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=endless, isatty=lambda: False))
        with pytest.raises(FatalError, match="stdin:1: a line of more than 67,108,864 bytes is no text"):
            classify(None, None, labels="a", multi_label=False, template=None, as_json=False)


@pytest.mark.parametrize(
    ("text", "labels", "template", "said"),
    [
        ("x", "", None, "labels = .*CLASSIFY needs at least one label"),
        ("x", "[1]", None, "--labels: write texts"),
        ("x", "[a", None, "--labels: is no JSON"),
        (" ", "a", None, "text = .*send some text"),
        ("x", "a", "no place", "hypothesis_template"),
    ],
)
def test_what_will_not_do_is_told_before_a_model_is_loaded(
    text: str, labels: str, template: str | None, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        classify(text, None, labels=labels, multi_label=False, template=template, as_json=False)


def test_evidence_is_quoted_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    text = "We like it here \U0001f40d. You are a fool!"
    assert classify(text, None, labels="insult", multi_label=True, template=None, evidence=1, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    (label,) = shown["labels"]
    (found,) = label["evidence"]
    assert found["text"] == text[found["start"] : found["end"]] == "You are a fool!"
    assert 0 < found["drop"] <= label["entailment"]
    assert shown["evidence_cut"] is False


@pytest.mark.parametrize(("has_colour", "found"), [(True, "\x1b[32mfool\x1b[0m"), (False, "[fool]")])
def test_evidence_stands_out_in_its_surroundings(
    monkeypatch: pytest.MonkeyPatch, *, has_colour: bool, found: str
) -> None:
    text = "a" * 50 + "\x1b[2Jfool\nb"
    out = Screen()
    monkeypatch.setattr(out, "_has_colour", has_colour)
    start = text.index("fool")
    shown = _in_context(out, text, Evidence(Span(start, start + 4), 0.5), screen.GREEN)
    assert shown == f"…{'a' * 36}\\x1b[2J{found} b"


def test_labels_may_come_from_a_file_and_answers_from_a_worker_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "labels.json"
    file.write_text('["late", "lost, or stolen"]', encoding="utf-8")
    token = "a-token-of-enough-characters"  # noqa: S105 (of this test)
    with served(tokens=token) as worker:
        url = f"http://127.0.0.1:{worker.endpoint.port}/"
        given = {"labels": "", "label_set": file, "multi_label": True, "template": None, "as_json": True, "url": url}
        with pytest.raises(SettingsError, match="answers 401: send Authorization"):
            classify("Where is it?", None, **given)  # type: ignore[arg-type]
        monkeypatch.setenv("XNLI_HTTP__TOKENS", token)
        assert classify("Where is it?", None, **given)  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="infinities"):
            classify("refused", None, **given)  # type: ignore[arg-type]
    shown = json.loads(capsys.readouterr().out)
    assert [one["label"] for one in shown["labels"]] == ["late", "lost, or stolen"]
    assert (shown["multi_label"], shown["model"]["name"]) == (True, "scripted")


@pytest.mark.parametrize(
    ("content", "url", "said"),
    [
        (None, None, "labels.json: No such file"),
        ("[", None, "labels.json: is no JSON"),
        ('{"a": 1}', None, "labels.json: is no list of labels"),
        ('["a"]', "ftp://x", "--url: write http"),
        ('["a"]', "http://user:password@x", "--url: holds credentials"),
        ('["a"]', "http://127.0.0.1:1", "no worker answers there"),
    ],
)
def test_what_will_not_do_of_a_file_or_an_address_says_so(
    content: str | None, url: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "labels.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=said):
        classify("x", None, labels="", label_set=file, multi_label=False, template=None, as_json=False, url=url)
