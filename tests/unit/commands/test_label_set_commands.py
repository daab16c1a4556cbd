"""`label-sets`, through the embedded broker: what is written, what is said, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.families.revisions import calibrate
from worker import cli
from worker.avro.codec import schema_folder
from worker.commands.connection import load_settings
from worker.commands.topic_declaration import declared
from worker.demo.play import CHECKPOINT
from worker.kafka.embedded import EmbeddedBroker

ROOT = Path(__file__).parents[3]
EXAMPLE = schema_folder() / "examples" / "label-set-moderation.json"
Run = Callable[..., tuple[int, list[Any], str]]


@pytest.fixture
def topic(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"label-sets-{uuid.uuid4().hex[:8]}"
    embedded.create(name)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    monkeypatch.setenv("XNLI_TOPICS__LABEL_SETS", name)
    return name


@pytest.fixture
def run(topic: str, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path) -> tuple[int, list[Any], str]:
        code = cli.main(["label-sets", *map(str, words)])
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def written(folder: Path, value: object, name: str = "set.json") -> Path:
    file = folder / name
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


def test_a_set_is_put_changed_shown_and_deleted(run: Run, tmp_path: Path) -> None:
    code, [told], _ = run("put", EXAMPLE)
    assert (code, told["name"], told["status"], told["version"]) == (0, "moderation", "created", "2026-11-30")
    assert "+ spam > fraud" in told["changes"]
    threat = next(line for line in told["changes"] if line.startswith("+ abuse > threat"))
    assert threat.endswith('"de": "Jemand wird bedroht."}, threshold 0.5')
    assert [told["status"] for told in run("put", EXAMPLE)[1]] == ["unchanged"]

    value = json.loads(EXAMPLE.read_text("utf-8"))
    value["labels"][0]["threshold"] = 0.7
    value["labels"][1]["children"] = ["fraud", "phishing"]
    file = written(tmp_path, value)
    code, _, err = run("put", file)
    assert code == 2
    assert "version '2026-11-30' is in the topic with another content" in err
    del value["version"]
    code, [told], _ = run("diff", written(tmp_path, value))
    assert (code, told["status"], told["version"]) == (1, "differs", "2026-11-30")
    changes = told["changes"]
    assert changes == [
        '~ version "2026-11-30" -> none',
        "- spam > advertisement",
        "~ abuse: threshold 0.6 -> 0.7",
        "+ spam > phishing",
    ]
    code, [told], _ = run("put", file)
    assert (code, told["status"], told["changes"]) == (0, "changed", changes)
    assert told["version"] == f"{told['partition']}/{told['offset']}"
    assert run("diff", file)[0] == 0

    code, [shown], _ = run("show", "moderation")
    assert (code, shown) == (0, value)
    again = written(tmp_path, shown, "again.json")
    assert [told["status"] for told in run("put", again)[1]] == ["unchanged"]

    code, out, err = run("delete", "moderation")
    assert (code, out) == (2, [])
    assert "--yes" in err
    assert [told["status"] for told in run("delete", "--yes", "moderation")[1]] == ["deleted"]
    assert run("list")[1] == []
    code, _, err = run("show", "moderation")
    assert code == 1
    assert "has no label set 'moderation'" in err


def test_several_sets_stand_in_one_file_of_toml(run: Run, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        [sets.moods]
        labels = ["happy", "sad"]
        hypothesis_template = {default = "Mood: {}.", fr = "Humeur : {}."}

        [[sets.topics.labels]]
        label = "sport"
        children = ["chess", {label = "tennis", threshold = 0.9}]
        """,
        "sets.toml",
    )
    assert [told["name"] for told in run("put", file)[1]] == ["moods", "topics"]
    listed = run("list")[1]
    assert [(line["name"], line["labels"], line["levels"], line["languages"]) for line in listed] == [
        ("moods", 2, 1, ["fr"]),
        ("topics", 3, 2, []),
    ]
    assert [line["version"] for line in listed] == [f"{line['partition']}/{line['offset']}" for line in listed]


def test_sets_are_written_though_stdout_takes_nothing(tmp_path: Path, run: Run) -> None:
    file = written(
        tmp_path, '[sets.moods]\nlabels = ["happy", "sad"]\n[sets.topics]\nlabels = ["sport"]\n', "sets.toml"
    )
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, "-P", "-m", "worker.cli", "label-sets", "put", file],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == "xnli-worker: stdout: No space left on device; what was done is not told there\n"
    assert [line["name"] for line in run("list")[1]] == ["moods", "topics"]


def test_a_set_stays_in_the_partition_where_somebody_put_it(
    run: Run, topic: str, embedded: EmbeddedBroker, tmp_path: Path
) -> None:
    producer = Producer({"bootstrap.servers": embedded.bootstrap_servers, "log_level": 0})
    for number in range(4):
        producer.produce(topic, b'["a"]', f"set-{number}".encode(), partition=number)
        producer.produce(topic, b'["a", 1]', f"broken-{number}".encode(), partition=number)
    assert producer.flush(10) == 0
    for number in range(4):
        [told] = run("put", "--name", f"set-{number}", written(tmp_path, ["a", "b"]))[1]
        assert (told["partition"], told["changes"]) == (number, ["+ b"])
    refused = {line["name"]: line["refused"] for line in run("list")[1]}
    assert refused == {
        name: None if name.startswith("set") else "[1] = 1: Input should be a valid string" for name in refused
    }
    assert len(refused) == 8
    code, _, err = run("show", "broken-0")
    assert code == 1
    assert "the worker refuses what lies there: [1] = 1" in err
    [told] = run("put", "--name", "broken-2", written(tmp_path, ["a"]))[1]
    assert (told["status"], told["partition"]) == ("changed", 2)


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (["a"], None, "set.json: the set has no name; give --name NAME"),
        ({"labels": ["a"], "threshold": 2}, "n", "set.json: n: threshold = 2: "),
        ('{"labels": ["a"], "labels": ["b"]}', "n", "the key 'labels' stands twice"),
        ("[", "n", "set.json: is no JSON"),
        ({"sets": {"a": ["x"]}, "name": "b"}, None, "nothing stands beside it"),
        ({"sets": {"a": ["x"], "b": ["y"]}}, "a", "--name 'a' is for one set: the files hold 'a', 'b'"),
        ({"name": "other", "labels": ["a"]}, "n", "name = 'other': the key of the record is 'n'"),
    ],
)
def test_a_file_that_holds_no_set_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, value: object, name: str | None, said: str
) -> None:
    named = ["--name", name] if name is not None else []
    code, out, err = run("put", *named, written(tmp_path, value))
    assert (code, out) == (2, [])
    assert said in err
    assert run("list")[1] == []


def test_toml_that_is_no_text_is_named(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, 'name = "s"\nversion = 2026-11-30\nlabels = ["a"]\n', "set.toml")
    code, _, err = run("put", file)
    assert code == 2
    assert "write it as text, in quotes" in err


def test_the_topic_is_declared_compacted_and_in_one_partition(topic: str) -> None:
    found = next(one for one in declared(load_settings(None), 12) if one.setting == "topics.label_sets")
    assert (found.name, found.partitions, found.config["cleanup.policy"]) == (topic, 1, "compact")
    assert "retention.ms" not in found.config


def test_without_a_topic_in_the_settings_the_setting_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XNLI_TOPICS__LABEL_SETS")
    code, _, err = run("list")
    assert code == 2
    assert "topics.label_sets is not set" in err


def test_a_hypothesis_that_leaves_no_room_in_the_models_window_is_refused(run: Run, tmp_path: Path) -> None:
    long = "word " * 300
    value = {"name": "s", "labels": ["a", {"label": "b", "hypothesis": {"de": long, "default": "Short."}}]}
    code, out, err = run("put", "--model", "demo", written(tmp_path, value))
    assert (code, out) == (2, [])
    assert "s: hypothesis 'word word" in err
    assert "for the text" in err
    value["labels"] = ["a"]
    assert [told["status"] for told in run("put", "--model", "demo", written(tmp_path, value))[1]] == ["created"]


def test_a_set_names_a_calibration_that_is_offered(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moods = written(tmp_path, {"name": "moods", "labels": ["glad", "sad"], "calibration": "moods"})
    assert run("put", moods)[0] == 0
    assert "model.calibration is not set here: whether the worker offers moods is not checked" in run("put", moods)[2]

    offered = tmp_path / "offered"
    calibrate(offered / "topics-1.json", CHECKPOINT, ("glad", "sad"), 2.0)
    monkeypatch.setenv("XNLI_MODEL__CALIBRATION", str(offered))
    assert run("put", moods)[0] == 2
    assert f"moods: calibration = 'moods', and model.calibration = {offered} holds topics" in run("put", moods)[2]
    calibrate(offered / "moods-1.json", CHECKPOINT, ("glad", "sad"), 2.0)
    code, _, said = run("put", moods)
    assert (code, said) == (0, "")

    monkeypatch.setenv("XNLI_MODEL__CALIBRATION", str(tmp_path / "elsewhere"))
    assert "elsewhere is not on this machine" in run("put", moods)[2]


def test_a_person_sees_a_table_a_tree_and_is_asked(
    topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.commands.label_set_changes.is_wanted", lambda as_json: as_json)
    monkeypatch.setattr("worker.commands.label_set_listing.is_wanted", lambda as_json: as_json)
    assert cli.main(["label-sets", "put", str(EXAMPLE)]) == 0
    assert capsys.readouterr().out.startswith("moderation: created, version 2026-11-30\n  ~ abstain_on_neutral 0.9\n")
    assert cli.main(["label-sets", "list"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "version", "labels", "levels", "languages", "age"]
    assert line.split()[:-1] == ["moderation", "2026-11-30", "6", "2", "de"]
    assert cli.main(["label-sets", "show", "moderation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "moderation, version 2026-11-30"
    assert "  abuse  (from 0.6; This text attacks somebody.)" in lines
    assert "    threat  (from 0.5; Somebody is threatened.)" in lines
    assert "    fraud" in lines

    answer = io.StringIO("n\n")
    monkeypatch.setattr(answer, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answer)
    assert cli.main(["label-sets", "delete", "moderation"]) == 0
    said = capsys.readouterr()
    assert "delete moderation?" in said.err
    assert "nothing was deleted" in said.err
    assert said.out == ""
