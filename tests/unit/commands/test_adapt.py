"""`xnli-worker adapt`, with a few steps of the demo's checkpoint: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.unknown import unknown_examples
from worker.commands import adaptation_texts
from worker.commands.adapt import Options, adapt
from worker.commands.adaptation_texts import Files
from worker.commands.classify import classify
from worker.commands.labelled import Given
from worker.errors import SettingsError
from worker.inference import loading
from worker.learn.training import Epoch


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)  # "demo" is no folder here
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    return tmp_path


@pytest.fixture
def given(here: Path) -> Path:
    file = here / "examples.jsonl"
    learnt = [one for one in unknown_examples(4, seed=0, evaluation=False) if one["expected"] in {"gardening", "chess"}]
    file.write_text("".join(json.dumps(one | {"labels": ["gardening", "chess"]}) + "\n" for one in learnt))
    return file


@pytest.fixture
def others(here: Path) -> Files:
    """A few texts in place of the demo's messages, which take longer."""
    (here / "unseen.csv").write_text("The striker scored twice.,sport\nThe bank fears rising inflation.,finance\n")
    (here / "requests.csv").write_text("text,labels\nIt will rain heavily.,weather|health\n")
    return Files(unseen=str(here / "unseen.csv"), rehearsal=here / "requests.csv")


def run(examples: Path, others: Files, model: str = "demo", held_out: float = 0.25, **plan: Any) -> None:
    options = Options(held_out, 6, 0.5, {"epochs": 2, **plan})
    adapt(Given(str(examples), model=model), others, Path("model"), options, as_json=False)


def test_a_checkpoint_is_written_that_the_worker_serves(
    given: Path, others: Files, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(here.iterdir())
    run(given, others)
    out, err = capfd.readouterr()
    assert err == ""
    *epochs, story = [json.loads(line) for line in out.splitlines()]
    tried = [epoch for epoch in epochs if epoch["distance"] is not None]
    again = epochs[len(tried) :]  # over all examples, for as long as was best
    assert [epoch["number"] for epoch in tried] == [1, 2]
    assert len(again) == story["plan"]["epochs"] == min(tried, key=lambda epoch: epoch["distance"])["number"]
    assert set(here.iterdir()) - before == {here / "model"}
    output = here / "model"
    assert story == {"output": "model"} | json.loads((output / "adaptation.json").read_text())
    assert story["labels"] == ["gardening", "chess"]
    assert (story["examples"], story["held_out"]) == (8, 2)
    assert story["base"]["name"] == "demo"
    assert story["new_labels"]["examples"] == 2
    assert not story["new_labels_took_no_part"]
    assert story["unseen_labels"]["before"]["accuracy"] == 1
    card = (output / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model: demo" in card
    assert story["revision"] in card
    assert f"| labels that were learnt | 2 | {story['new_labels']['before']['macro_f1']:.1%} |" in card
    assert "flatter" in card

    checkpoint = loading.load(str(output), revision=story["revision"], device="cpu")  # self-test included
    assert checkpoint.identity.revision != story["base"]["revision"]
    classify(
        "My aunt is pruning the roses.",
        _settings(here, output),
        labels="gardening,chess",
        multi_label=False,
        template=None,
        as_json=True,
    )
    answer = json.loads(capfd.readouterr().out)
    assert answer["model"] == {"name": str(output), "revision": story["revision"]}


def _settings(here: Path, output: Path) -> Path:
    file = here / "worker.toml"
    file.write_text(f'[kafka]\nbootstrap_servers = "none"\n[model]\nname = "{output}"\n')
    return file


def test_the_examples_of_a_test_take_no_part(
    given: Path, others: Files, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test = here / "test.csv"
    test.write_text("text,label\nThe pensioner next door rakes the lawn.,gardening\n")
    run(given, replace(others, test=str(test)), held_out=0.0, epochs=1, method="lora")
    *epochs, story = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [epoch["distance"] for epoch in epochs] == [None]
    assert story["new_labels"]["examples"] == 1
    assert story["new_labels_took_no_part"]
    assert story["held_out"] == 0
    assert "flatter" not in (here / "model/README.md").read_text()


def test_a_test_is_asked_about_every_label_that_is_learnt(given: Path, here: Path) -> None:
    test = here / "test.csv"
    test.write_text("Her opponent declines the gambit.,chess\n")
    _, texts = adaptation_texts.read(Given(str(given), model="demo"), Files(test=str(test)))
    assert texts.test[0].request.labels == texts.examples[0].request.labels
    assert texts.test[0].request.labels == ("gardening", "chess")


def test_samples_that_are_rehearsed_do_not_measure_what_is_lost(given: Path) -> None:
    _, texts = adaptation_texts.read(Given(str(given), model="demo"), Files())
    rehearsed = {request.text for request in texts.rehearsal}
    assert len(rehearsed) > 30
    assert len(texts.unseen) > 30
    assert rehearsed.isdisjoint(one.request.text for one in texts.unseen)


def test_what_the_self_test_refuses_is_not_written(given: Path, others: Files, here: Path) -> None:
    before = set(here.iterdir())
    with pytest.raises(SettingsError, match="a worker would refuse, so nothing is written: the self-test of"):
        run(given, others, learning_rate=1.0, held_out=0.0)
    assert set(here.iterdir()) == before


def test_what_is_broken_off_leaves_nothing(
    given: Path, others: Files, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_epoch: Epoch) -> None:
        raise KeyboardInterrupt

    before = set(here.iterdir())
    monkeypatch.setattr("worker.commands.adapt.asdict", interrupted)  # an epoch is told of in the midst of training
    with pytest.raises(KeyboardInterrupt):
        run(given, others)
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "x"}', r"examples.jsonl:1: expected is missing"),
        ('{"text": "x", "expected": "a", "labels": ["b"]}', r"examples.jsonl:1: expected = .*none of the candidates"),
        ('{"text": "x", "expected": "a", "label_set": "s"}', r"examples.jsonl:1: .*label_set"),
        ("", r"examples.jsonl: holds no examples"),
    ],
)
def test_what_is_no_example_is_told_before_a_model_is_loaded(here: Path, lines: str, said: str) -> None:
    file = here / "examples.jsonl"
    file.write_text(lines)
    with pytest.raises(SettingsError, match=said):
        run(file, Files(), model="no/such-model")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "x"}', r"--rehearsal .*rehearsal:1: .*at least one label"),
        ("{", r"--rehearsal .*rehearsal:1: .*no JSON"),
        ("", "holds no requests"),
    ],
)
def test_what_is_no_request_cannot_be_rehearsed(given: Path, here: Path, lines: str, said: str) -> None:
    file = here / "rehearsal"
    file.write_text(lines)
    with pytest.raises(SettingsError, match=said):
        run(given, Files(rehearsal=file), model="no/such-model")


def test_a_directory_that_is_there_is_refused_before_anything_is_read(given: Path, here: Path) -> None:
    (here / "model").mkdir()
    with pytest.raises(SettingsError, match=r"--output model: is there already"):
        run(here / "absent", Files())
