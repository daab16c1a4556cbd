from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from worker.commands import config
from worker.errors import SettingsError
from worker.settings import Settings, load


def test_the_file_to_begin_with_loads_and_shows_every_default(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    config.init(file, force=False)
    loaded = load(file, {})
    assert (loaded.kafka.bootstrap_servers, loaded.model.name) == ("localhost:9092", "demo")
    # With each line switched on it means the same: what is shown is the default.
    lines = file.read_text("utf-8").splitlines()
    on = [line.removeprefix("#") for line in lines if not line.startswith("# ") and not line.endswith("=")]
    everything = tmp_path / "everything.toml"
    everything.write_text("\n".join(on))
    assert load(everything, {}).model_dump() == loaded.model_dump()
    shown = tomllib.loads(everything.read_text())
    unset = [line[1:-2] for line in lines if line.startswith("#") and line.endswith("=")]
    every = {(name, key) for name, values in loaded.model_dump().items() for key in values}
    assert sum(len(table) for table in shown.values()) + len(unset) == len(every)


def test_every_setting_says_what_it_is() -> None:
    for name, section in Settings.model_json_schema()["$defs"].items():
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key} needs a text under it"


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("mine")
    with pytest.raises(SettingsError, match=r"is there already.*--force"):
        config.init(file, force=False)
    assert file.read_text() == "mine"
    config.init(file, force=True)
    assert file.read_text() != "mine"


def test_each_setting_comes_with_its_source_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbootstrap_servers = "h:1"\n'
        'properties = {"security.protocol" = "SASL_SSL", "sasl.username" = "file"}\n'
        '[model]\nname = "demo"\n[schema_registry]\nusername = "u"\n'
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "schema_registry__password").write_text("hunter2\n")
    monkeypatch.setenv("XNLI_SECRETS_DIR", str(secrets))
    monkeypatch.setenv("XNLI_KAFKA__PROPERTIES", '{"sasl.username": "environment", "sasl.password": "hunter2"}')
    config.show(file, as_json=True)
    out = capsys.readouterr().out
    assert "hunter2" not in out
    shown = {line["setting"]: (line["value"], line["source"]) for line in map(json.loads, out.splitlines())}
    variable = "XNLI_KAFKA__PROPERTIES"
    assert shown["kafka.bootstrap_servers"] == ("h:1", str(file))
    assert shown['kafka.properties."security.protocol"'] == ("SASL_SSL", str(file))
    assert shown['kafka.properties."sasl.username"'] == ("environment", variable)
    assert shown['kafka.properties."sasl.password"'] == ("[redacted]", variable)
    assert shown["schema_registry.password"] == ("[redacted]", str(secrets))
    assert shown["batch.max_messages"] == (256, "default")


def test_the_schema_takes_what_the_settings_take(capsys: pytest.CaptureFixture[str]) -> None:
    config.schema()
    found = json.loads(capsys.readouterr().out)
    assert found["required"] == ["kafka", "model"]
    topics = found["$defs"]["TopicSettings"]["properties"]["input"]
    assert {kind["type"] for kind in topics["anyOf"]} == {"string", "array"}
