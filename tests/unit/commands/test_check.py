from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
import torch
import transformers

from tests.brokers.kafka import Kafka
from tests.brokers.registry import LoopbackRegistry
from tests.conftest import TopicFactory
from tests.families import tokenizers
from worker.commands import check as check_module
from worker.commands.check import check
from worker.kafka.embedded import EmbeddedBroker

Shown = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint that loads; what it answers is another matter."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tokenizers.xlm_roberta()
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=66,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def topics(embedded: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings with which all is well but the model, which is an empty directory; three topics that are there."""
    unique = uuid.uuid4().hex[:8]
    names = {key: f"{key}-{unique}" for key in ("input", "output", "dead_letter")}
    embedded.create(*names.values())
    for key, name in names.items():
        monkeypatch.setenv(f"XNLI_TOPICS__{key.upper()}", name)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    monkeypatch.setenv("XNLI_DELIVERY__GUARANTEE", "at_least_once")
    monkeypatch.setenv("XNLI_MODEL__NAME", str(tmp_path))
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    monkeypatch.setenv("XNLI_MODEL__SELF_TEST", "off")
    return names


def run(capfd: pytest.CaptureFixture[str], config: Path | None = None) -> tuple[int, Shown]:
    """Exit code, and the status and text of each line by the name of its step. Nothing goes to stderr."""
    code = check(config)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    shown: Shown = {}
    for line in out.splitlines():
        found = json.loads(line)
        assert found["status"] in {"ok", "fail", "skip", "warn"}
        shown.setdefault(found["check"], []).append((found["status"], found["message"]))
    return code, shown


def test_all_is_well(
    topics: dict[str, str],
    embedded: EmbeddedBroker,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XNLI_MODEL__NAME", str(checkpoint))
    code, shown = run(capfd)
    assert code == 0
    steps = ["settings", "schemas", "broker", "topics", "retention", "transactions", "registry", "device", "model"]
    assert list(shown) == steps
    assert all(len(lines) == 1 for lines in shown.values())
    assert {name: lines[0][0] for name, lines in shown.items() if lines[0][0] != "ok"} == {
        "retention": "skip",
        "transactions": "skip",
        "registry": "skip",
    }
    assert embedded.bootstrap_servers in shown["broker"][0][1]
    assert all(f"{name} (4 partitions)" in shown["topics"][0][1] for name in topics.values())
    assert str(checkpoint) in shown["model"][0][1]


@pytest.mark.kafka
def test_all_is_well_on_real_kafka(
    kafka: Kafka,
    topic: TopicFactory,
    checkpoint: Path,
    topics: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = {key: topic(key, partitions=2) for key in topics}
    monkeypatch.setenv("XNLI_TOPICS__RETRY", "[5]")
    monkeypatch.setenv("XNLI_KAFKA__GROUP_ID", group := uuid.uuid4().hex)
    kafka.create_topic(f"{group}.retry.5s", 2)
    for key, name in names.items():
        monkeypatch.setenv(f"XNLI_TOPICS__{key.upper()}", name)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("XNLI_DELIVERY__GUARANTEE", "exactly_once")
    monkeypatch.setenv("XNLI_MODEL__NAME", str(checkpoint))
    code, shown = run(capfd)
    assert code == 0
    assert shown["transactions"][0][0] == "ok"
    assert all(f"{name} (2 partitions)" in shown["topics"][0][1] for name in (*names.values(), f"{group}.retry.5s"))


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("config", "status", "said"),
    [
        ({"retention.ms": "86400000"}, "warn", "set message.timestamp.type=LogAppendTime or retention.ms=-1"),
        ({"retention.ms": "86400000", "message.timestamp.type": "LogAppendTime"}, "ok", "1 days"),
        ({"retention.ms": "-1"}, "ok", "for ever"),
    ],
)
def test_a_topic_that_would_delete_dead_letters_of_old_requests(
    kafka: Kafka,
    topic: TopicFactory,
    topics: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    config: dict[str, str],
    status: str,
    said: str,
) -> None:
    for key in topics:
        monkeypatch.setenv(f"XNLI_TOPICS__{key.upper()}", topic(key, config=config))
    monkeypatch.setenv("XNLI_TOPICS__RETRY", "[5]")
    monkeypatch.setenv("XNLI_KAFKA__GROUP_ID", "nobody")
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("XNLI_MODEL__NAME", "./none")
    _, shown = run(capfd)
    assert "topics.retry = 'nobody.retry.5s' is not there" in shown["topics"][0][1]
    assert shown["retention"][0][0] == status
    assert said in shown["retention"][0][1]


def test_an_unknown_setting_is_named_and_nothing_else_is_tried(
    topics: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[batch]\nmax_mesages = 5\n[limits]\nmax_labels = 0\n")
    code, shown = run(capfd, file)
    assert code == 2
    assert [status for status, _ in shown["settings"]] == ["fail", "fail"]
    assert "batch.max_mesages: no such setting" in shown["settings"][0][1]
    assert "limits.max_labels = 0" in shown["settings"][1][1]
    del shown["settings"]
    assert all(lines == [("skip", "needs settings")] for lines in shown.values())
    assert len(shown) == 8


def test_a_broker_that_is_not_there(
    topics: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(check_module, "_BROKER_TIMEOUT_S", 0.5)
    code, shown = run(capfd)
    ((status, text),) = shown["broker"]
    assert status == "fail"
    assert "'127.0.0.1:1'" in text
    assert "cannot reach 127.0.0.1:1: connection refused" in text
    assert shown["topics"] == [("skip", "needs broker")]
    assert shown["transactions"] == [("skip", "needs broker")]
    assert code == 2  # the model's directory is empty, too


def test_a_directory_without_a_model(topics: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capfd)
    assert code == 2
    ((status, text),) = shown["model"]
    assert status == "fail"
    assert str(tmp_path) in text
    assert "config.json" in text


def test_a_device_that_is_not_there(
    topics: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cuda:99")
    code, shown = run(capfd)
    assert code == 2
    assert shown["device"][0][0] == "fail"
    assert "cuda:99" in shown["device"][0][1]
    assert shown["model"] == [("skip", "needs device")]


def test_topics_that_are_not_there_are_each_named_with_the_command_that_makes_them(
    topics: dict[str, str],
    embedded: EmbeddedBroker,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XNLI_MODEL__NAME", str(checkpoint))
    monkeypatch.setenv("XNLI_TOPICS__OUTPUT", "no-output")
    monkeypatch.setenv("XNLI_TOPICS__LABEL_SETS", "no-sets")
    code, shown = run(capfd)
    assert code == 1
    findings = shown["topics"]
    assert [status for status, _ in findings] == ["fail", "fail"]
    assert "topics.output = 'no-output'" in findings[0][1]
    assert "create it (xnli-worker topics create)" in findings[0][1]
    assert "topics.label_sets = 'no-sets'" in findings[1][1]
    assert run(capfd)[1]["topics"] == findings  # looking did not create them


def test_the_embedded_broker_is_not_believed_about_transactions(
    topics: dict[str, str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_MODEL__NAME", str(checkpoint))
    monkeypatch.setenv("XNLI_DELIVERY__GUARANTEE", "exactly_once")
    code, shown = run(capfd)
    assert code == 2
    ((status, text),) = shown["transactions"]
    assert status == "fail"
    assert "delivery.guarantee = 'at_least_once'" in text


@pytest.mark.parametrize("section", ["properties", "consumer_properties", "producer_properties"])
def test_a_property_that_librdkafka_does_not_know(
    topics: dict[str, str], section: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"XNLI_KAFKA__{section.upper()}", '{"fetch.mni.bytes": 5}')
    code, shown = run(capfd)
    assert code == 2
    ((status, text),) = shown["broker"]
    assert status == "fail"
    assert "fetch.mni.bytes" in text


def test_registries(
    topics: dict[str, str],
    loopback_registry: LoopbackRegistry,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def registry() -> tuple[str, str]:
        (line,) = run(capfd)[1]["registry"]
        return line

    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", "localhost:8081")
    ((status, text),) = run(capfd)[1]["settings"]
    assert status == "fail"
    assert text.startswith("schema_registry.url = 'localhost:8081': write http://host:port or https://host:port")

    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", loopback_registry.url)
    status, text = registry()
    assert status == "fail"
    assert f"{topics['output']}-value" in text

    loopback_registry.available = False
    began_s = time.monotonic()
    status, text = registry()
    assert status == "fail"
    assert loopback_registry.url in text
    assert time.monotonic() - began_s < 5  # asked once

    loopback_registry.available = True
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__AUTO_REGISTER", "true")
    assert registry() == ("ok", f"{loopback_registry.url} knows the result's schema")


def test_whatever_loading_the_model_raises_is_one_line(
    topics: dict[str, str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged in transport")
    code, shown = run(capfd)
    assert code != 0
    ((status, _),) = shown["model"]
    assert status == "fail"


def test_a_calibration_of_another_model_is_named(
    topics: dict[str, str],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = {"format": 1, "name": "moods", "model": {"name": "other", "revision": "abc"}, "multi_label": False}
    labels = [{"label": "glad", "hypotheses": ["It is glad."]}, {"label": "sad", "hypotheses": ["It is sad."]}]
    (tmp_path / "moods.json").write_text(json.dumps(made | {"temperature": 1.5, "labels": labels}), "utf-8")
    monkeypatch.setenv("XNLI_MODEL__NAME", str(checkpoint))
    monkeypatch.setenv("XNLI_MODEL__CALIBRATION", str(tmp_path / "moods.json"))
    code, shown = run(capfd)
    assert code == 2
    ((status, text),) = shown["model"]
    assert status == "fail"
    assert "model.calibration: 'moods' was fitted on other at abc" in text
