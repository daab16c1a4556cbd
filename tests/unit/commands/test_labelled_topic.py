"""Examples of a topic: requests that say what is right, read without a group."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from structlog.testing import capture_logs

from tests.builders import followed_sets
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.commands.evaluate import evaluate
from worker.commands.labelled import Given, Labelled
from worker.errors import SettingsError
from worker.kafka.embedded import EmbeddedBroker


def request(number: int, expected: str | None, **fields: object) -> bytes:
    attributes = {} if expected is None else {"expected": expected}
    given = {"id": str(number), "text": "We won the match.", "attributes": attributes} | fields
    codecs = Codecs()
    value, _ = codecs.encode_request(json_request.request(given))
    return value


@pytest.fixture
def topic(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    return f"labelled-{uuid.uuid4().hex[:8]}"


def produce(embedded: EmbeddedBroker, topic: str, *records: tuple[bytes | None, bytes | None]) -> None:
    client = Producer({"bootstrap.servers": embedded.bootstrap_servers, "log_level": 0})
    for key, value in records:
        client.produce(topic, value, key, partition=0)
    assert client.flush(10) == 0


def test_requests_that_say_what_is_right_are_scored_and_the_others_counted(
    embedded: EmbeddedBroker,
    topic: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = f"{topic}-sets"
    monkeypatch.setenv("XNLI_TOPICS__LABEL_SETS", sets)
    produce(embedded, sets, (b"topics", json.dumps(["sport", "finance"]).encode()))
    values = [
        request(1, "sport", labels=["sport", "weather"]),
        request(2, "sport", label_set="topics"),
        request(3, None, labels=["sport"]),
        request(4, "[1", labels=["sport"]),
        b"no Avro",
        None,
    ]
    produce(embedded, topic, *((None, value) for value in values))
    assert evaluate(Given(topic=topic), lambda: False)
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["examples"], set(report["labels"])) == (2, {"sport", "weather", "finance"})
    assert f"{topic}:0:3: attributes.expected" in err
    assert f"{topic}:0:4: " in err
    assert "left out: 2 records without the attribute expected, 2 that are no examples" in err


def test_a_topic_without_examples_is_told(embedded: EmbeddedBroker, topic: str) -> None:
    produce(embedded, topic, (None, request(1, None, labels=["a"])))
    with pytest.raises(SettingsError, match="holds no request with the attribute expected"):
        Labelled(Given(topic=topic), lambda: False)


def test_a_label_set_whose_calibration_nobody_offers_serves_and_is_told_of(
    embedded: EmbeddedBroker, topic: str
) -> None:
    produce(embedded, topic, (b"a", b'{"labels": ["x"], "calibration": "none\'s"}'), (b"b", b'["calibration"]'))
    sets = followed_sets(
        embedded.bootstrap_servers, AdminClient({"bootstrap.servers": embedded.bootstrap_servers}), topic
    )
    with capture_logs() as told:
        sets.load(lambda: False)
    sets.close()
    assert set(sets.stored) == {"a", "b"}
    (line,) = [line for line in told if line["event"] == "label_set_uncalibrated"]
    assert (line["name"], line["calibration"], line["log_level"]) == ("a", "none's", "warning")
