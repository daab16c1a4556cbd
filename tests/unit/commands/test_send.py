from __future__ import annotations

import io
import json
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.brokers.registry import LoopbackRegistry
from worker.avro.codec import Codecs, schema_folder
from worker.commands import send as send_module
from worker.commands.send import send
from worker.errors import BrokerAway, RegistryAway, SettingsError
from worker.kafka.embedded import EmbeddedBroker

GOOD = {"id": "ü-1", "text": "Der Karton war beschädigt.", "labels": ["Lieferung", "Lob"]}


@pytest.fixture
def topic(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> str:
    """Settings in the environment that point at a new topic of the embedded broker."""
    name = f"requests-{uuid.uuid4().hex[:8]}"
    embedded.create(name)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    monkeypatch.setenv("XNLI_TOPICS__INPUT", f"{name},second-input")
    return name


def read(broker: EmbeddedBroker, topic: str, count: int) -> dict[bytes | None, bytes]:
    """Value by key of the first ``count`` records, and of whatever comes with them."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader", "fetch.wait.max.ms": 10})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)])
    found: dict[bytes | None, bytes] = {}
    while len(found) < count:
        message = consumer.poll(10)
        assert message is not None, f"{len(found)} of {count}"
        assert message.error() is None
        key = message.key()
        assert not isinstance(key, str)
        found[key] = message.value() or b""
    consumer.close()
    return found


def lines(*requests: Any) -> str:
    return "".join(json.dumps(request) + "\n" for request in requests)


def test_lines_become_requests_keyed_by_their_id(
    embedded: EmbeddedBroker, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    other = {"id": "2", "text": "x", "task": "EMBED", "attributes": {"a": "b"}}
    # What Windows' editors do to a file: a byte order mark, CRLF, an empty line at the end.
    file.write_bytes(b"\xef\xbb\xbf" + lines(GOOD, other).replace("\n", "\r\n").encode() + b"\r\n")

    assert send(str(file), None)
    records = read(embedded, topic, 2)
    assert set(records) == {"ü-1".encode(), b"2"}
    first = Codecs().read_request(records["ü-1".encode()], ())
    assert (first["text"], first["labels"], first["task"]) == (GOOD["text"], GOOD["labels"], "CLASSIFY")
    assert Codecs().read_request(records[b"2"], ())["attributes"] == {"a": "b"}
    shown = capsys.readouterr()
    tally = {"topic": topic, "delivered": 2, "refused": 0, "failed": 0, "unconfirmed": 0}
    assert json.loads(shown.out) == tally
    assert shown.err == ""


BAD = {
    b"nonsense": "no JSON",
    b'{"id": "1", "text": "x"': "no JSON",
    b'{"id": "\xff", "text": "x"}': "no JSON",
    b"[" * 100_000: "no JSON",
    b'["id"]': "no JSON object",
    b'{"id": "1"}': "text is required",
    b'{"id": 1, "text": "x"}': "id = 1",
    b'{"id": "\\ud800", "text": "x"}': "id = ",
    b'{"id": "1", "text": "x", "lables": []}': "lables is no field of a request",
    b'{"id": "1", "text": "x", "text": "y"}': "'text' stands there twice",
    b'{"id": "1", "text": "x", "attributes": {"a": "b", "\\u0061": "c"}}': "'a' stands there twice",
    b'{"id": "1", "text": "x", "a\xc2\x9b2J\xe2\x80\xae": 1}': "a\\x9b2J\\u202e is no field",
    b'{"id": "1", "text": "x", "top_k": 4294967296}': "top_k",
    b'{"id": "1", "text": "' + b"x" * 1_100_000 + b'"}': "message.max.bytes",
}


def test_bad_lines_are_reported_and_the_others_are_sent(
    embedded: EmbeddedBroker,
    topic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__PRODUCER_PROPERTIES", '{"message.max.bytes": 1000000}')
    file = tmp_path / "requests.jsonl"
    between = [lines({**GOOD, "id": str(number)}).encode() for number in range(len(BAD))]
    file.write_bytes(b"".join(bad + b"\n" + good for bad, good in zip(BAD, between, strict=True)))

    assert not send(str(file), None)
    assert set(read(embedded, topic, len(BAD))) == {str(number).encode() for number in range(len(BAD))}
    shown = capsys.readouterr()
    assert json.loads(shown.out)["delivered"] == len(BAD)
    assert json.loads(shown.out)["refused"] == len(BAD)
    complaints = shown.err.splitlines()
    assert len(complaints) == len(BAD)
    for number, (complaint, expected) in enumerate(zip(complaints, BAD.values(), strict=True)):
        assert complaint.startswith(f"{file}:{2 * number + 1}: ")
        assert expected in complaint
        assert len(complaint) < 1000


@pytest.mark.parametrize(
    "file", sorted((schema_folder() / "examples").glob("request-*.json")), ids=lambda file: file.stem
)
def test_every_example_can_be_sent_as_it_is(file: Path, embedded: EmbeddedBroker, topic: str) -> None:
    assert send(str(file), None)
    example = json.loads(file.read_text("utf-8"))
    (value,) = read(embedded, topic, 1).values()
    sent = Codecs().read_request(value, ())
    assert {name: sent[name] for name in example} == example


def test_csv_with_labels_for_all(embedded: EmbeddedBroker, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text('\ufefftext,id,labels,shop\r\n"late, and\nbroken",7,,north\r\nfine,,praise|neutral,\r\n')
    assert send(str(file), None, labels="delivery, payment")
    sent = {key: Codecs().read_request(value, ()) for key, value in read(embedded, topic, 2).items()}
    assert (sent[b"7"]["text"], sent[b"7"]["labels"]) == ("late, and\nbroken", ["delivery", "payment"])
    assert sent[b"7"]["attributes"] == {"shop": "north"}
    assert (sent[b"row-2"]["text"], sent[b"row-2"]["labels"]) == ("fine", ["praise", "neutral"])


def test_a_full_queue_is_waited_for(
    embedded: EmbeddedBroker, topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__PRODUCER_PROPERTIES", '{"queue.buffering.max.messages": 10}')
    requests = [{**GOOD, "id": str(number)} for number in range(500)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines(*requests).encode())))
    assert send("-", None)
    assert json.loads(capsys.readouterr().out)["delivered"] == 500
    assert len(read(embedded, topic, 500)) == 500


def test_stdin_is_named_in_complaints(
    topic: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n{}\n")))
    assert not send("-", None)
    assert capsys.readouterr().err.startswith("stdin:2: id is required; text is required")


def test_a_file_that_is_not_there_is_wrong_usage(topic: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.jsonl: No such file"):
        send(str(tmp_path / "absent.jsonl"), None)
    with pytest.raises(SettingsError, match="Is a directory"):
        send(str(tmp_path), None)


def test_nothing_is_read_when_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(send_module, "_CONNECT_TIMEOUT_S", 0.5)
    source = io.BytesIO(lines(GOOD).encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
    with pytest.raises(BrokerAway, match=r"cannot reach 127\.0\.0\.1:1: connection refused; start the broker"):
        send("-", None)
    assert source.tell() == 0
    assert capsys.readouterr().out == ""


def test_a_property_librdkafka_does_not_know_is_a_wrong_setting(
    topic: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__PRODUCER_PROPERTIES", '{"lingre.ms": 5}')
    (tmp_path / "r").write_text(lines(GOOD))
    with pytest.raises(SettingsError, match=r"producer_properties.*lingre\.ms"):
        send(str(tmp_path / "r"), None)
    assert capfd.readouterr().err == ""


def test_with_a_registry_its_schema_id_goes_before_the_value(
    embedded: EmbeddedBroker,
    topic: str,
    loopback_registry: LoopbackRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", loopback_registry.url)
    file = tmp_path / "requests.jsonl"
    file.write_text(lines(GOOD))
    with pytest.raises(SettingsError, match=f"{topic}-value"):
        send(str(file), None)

    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__AUTO_REGISTER", "true")
    assert send(str(file), None)
    value = read(embedded, topic, 1)["ü-1".encode()]
    assert value[0] == 0
    assert Codecs(loopback_registry.url).read_request(value, ())["id"] == "ü-1"


def test_a_registry_that_is_away_is_waited_for_aloud(
    topic: str,
    loopback_registry: LoopbackRegistry,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", loopback_registry.url)
    monkeypatch.setattr(send_module, "time", SimpleNamespace(sleep=lambda _: None))
    loopback_registry.available = False
    (tmp_path / "r").write_text(lines(GOOD))
    with pytest.raises(RegistryAway):
        send(str(tmp_path / "r"), None)
    assert "the schema registry does not answer; trying again in" in capsys.readouterr().err
