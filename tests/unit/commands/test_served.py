"""`serve --label-sets`: requests over HTTP name a set that stands in a file, with no broker anywhere."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.http.served import Engine, until
from worker.avro.codec import schema_folder
from worker.commands.served import served_label_sets, served_settings
from worker.errors import SettingsError
from worker.serve import Server

EXAMPLE = schema_folder() / "examples" / "label-set-moderation.json"


@pytest.fixture(autouse=True)
def _port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNLI_HTTP__PORT", "0")


def _written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@contextmanager
def _serving(files: list[Path]) -> Iterator[int]:
    """A server with these label sets. Yields its port."""
    loaded = served_settings(None)
    server = Server(loaded, engine=Engine(), label_sets=served_label_sets(files, loaded))
    stop = threading.Event()
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(server.run(stop.is_set)), daemon=True)
    thread.start()
    try:
        until(lambda: server.health.ready().ok, "it is ready")
        yield server.http.port
    finally:
        stop.set()
        thread.join(30)
    assert ended == [True]


def _ask(port: int, body: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/v1/classify", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_requests_name_the_sets_of_files(tmp_path: Path) -> None:
    moods = _written(tmp_path, "moods.toml", 'name = "moods"\nlabels = ["glad", "sad"]\n')
    with _serving([EXAMPLE, moods]) as port:
        status, found = _ask(port, {"text": "a", "label_set": "moods"})
        assert status == 200
        assert found["label_set"]["name"] == "moods"
        assert found["label_set"]["version"].startswith("file/")
        assert {one["label"] for one in found["outcome"]["labels"]} == {"glad", "sad"}
        status, found = _ask(port, {"text": "a", "label_set": "moderation"})
        assert (status, found["label_set"]) == (200, {"name": "moderation", "version": "2026-11-30"})
        status, found = _ask(port, {"text": "a", "label_set": "absent"})
        assert status == 422
        assert "--label-sets FILE" in found["detail"]


def test_without_files_a_request_that_names_a_set_is_told_how() -> None:
    with _serving([]) as port:
        status, found = _ask(port, {"text": "a", "label_set": "moods"})
        assert status == 422
        assert "serve: --label-sets FILE" in found["detail"]
        assert _ask(port, {"text": "a", "labels": ["b"]})[0] == 200


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.toml", 'labels = ["b"]', "the set has no name"),
        ("a.toml", 'name = "a"\nlabels = []', "labels"),
    ],
)
def test_a_file_that_holds_no_set_is_named(tmp_path: Path, name: str, text: str, named: str) -> None:
    file = _written(tmp_path, name, text)
    with pytest.raises(SettingsError, match=named) as refused:
        served_label_sets([file], served_settings(None))
    assert str(file) in str(refused.value)


def test_sets_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNLI_LABEL_SETS__MAX_BYTES", "4096")
    large = _written(tmp_path, "large.json", json.dumps({"name": "large", "labels": ["a" * 5000]}))
    with pytest.raises(SettingsError, match=r"large: .*label_sets\.max_bytes is 4096"):
        served_label_sets([large], served_settings(None))


def test_a_topic_of_sets_is_said_to_be_unread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_TOPICS__LABEL_SETS", "sets")
    assert served_label_sets([], served_settings(None)) is None
    assert "topics.label_sets is not read" in capsys.readouterr().err
