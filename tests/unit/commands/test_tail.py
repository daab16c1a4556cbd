from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.brokers.registry import LoopbackRegistry
from tests.builders import as_written
from worker.avro import json_request
from worker.avro.codec import Codecs, schema_folder
from worker.commands import tail as tail_module
from worker.commands.tail import Begin, Choice, tail
from worker.errors import SettingsError
from worker.kafka.embedded import EmbeddedBroker

RESULT = json.loads((schema_folder() / "examples" / "result-classification.json").read_text("utf-8"))
REQUEST = json_request.request({"id": "1", "text": "Tōkyō 東京", "labels": ["a"]})


class Broker:
    """The embedded broker with a results and a dead-letter topic that nobody else uses."""

    def __init__(self, embedded: EmbeddedBroker, results: str, dead_letters: str) -> None:
        self.results = results
        self.dead_letters = dead_letters
        self._client = Producer({"bootstrap.servers": embedded.bootstrap_servers, "log_level": 0})

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, **more: Any) -> None:
        self._client.produce(topic, value, key, **more)
        assert self._client.flush(10) == 0


@pytest.fixture
def broker(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    unique = uuid.uuid4().hex[:8]
    found = Broker(embedded, f"results-{unique}", f"dead-letters-{unique}")
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    monkeypatch.setenv("XNLI_TOPICS__OUTPUT", found.results)
    monkeypatch.setenv("XNLI_TOPICS__DEAD_LETTER", found.dead_letters)
    return found


def within(seconds: float) -> Callable[[], bool]:
    """A stop flag that goes up by itself, so that a test which fails does not hang."""
    deadline_s = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline_s


def follow(
    capfd: pytest.CaptureFixture[str],
    count: int,
    *,
    dead_letters: bool = False,
    begin: Begin | None = None,
    choice: Choice | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """What `tail` writes until ``count`` records are written or ten seconds have passed."""
    assert tail(
        None,
        dead_letters=dead_letters,
        count=count,
        begin=begin or Begin(from_beginning=True),
        choice=choice or Choice(),
        stop_requested=stop or within(10),
    )
    # JSON lines end in \n alone: texts may hold characters that str.splitlines takes for line ends.
    return [json.loads(line) for line in capfd.readouterr().out.split("\n")[:-1]]


def test_a_result_and_where_it_lies(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    value, headers = Codecs().encode_result(as_written(RESULT))
    broker.produce(
        broker.results, value, b"k", partition=2, timestamp=1234, headers=[*headers, ("traceparent", b"00-1")]
    )
    (shown,) = follow(capfd, 1)
    assert shown == {
        "topic": broker.results,
        "partition": 2,
        "offset": 0,
        "timestamp": 1234,
        "key": "k",
        "headers": {"traceparent": "00-1"},
        "result": RESULT,
    }


def test_it_ends_after_count(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    value, _ = Codecs().encode_result(as_written(RESULT))
    for number in range(5):
        broker.produce(broker.results, value, str(number).encode(), partition=0)
    assert [shown["key"] for shown in follow(capfd, 3)] == ["0", "1", "2"]


def test_all_partitions_are_read(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    value, _ = Codecs().encode_result(as_written(RESULT))
    for partition in range(4):
        broker.produce(broker.results, value, partition=partition)
    assert {shown["partition"] for shown in follow(capfd, 4)} == {0, 1, 2, 3}


def test_what_is_no_result_is_shown_as_it_is(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    broker.produce(broker.results, b"\xff" * 5000, b"\xff\x00", partition=0, headers=[("h", None), ("b", b"\xfe")])
    broker.produce(broker.results, None, partition=0)
    foreign, tombstone = follow(capfd, 2)
    assert "the value begins" in foreign["error"]
    assert base64.b64decode(foreign["value_base64"]) == b"\xff" * 1024
    assert foreign["key"] == "\\xff\x00"
    assert foreign["headers"] == {"h": None, "b": "\\xfe"}
    assert "result" not in foreign
    assert tombstone["result"] is None
    assert tombstone["key"] is None


def test_a_dead_letter_with_its_headers_and_its_request(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    value, _ = Codecs().encode_request({**REQUEST, "threshold": float("nan")})
    ours = {"xnli.dlq.reason": "invalid", "xnli.dlq.message": "threshold is no number: ü", "xnli.dlq.offset": "7"}
    headers = [(name, text.encode()) for name, text in ours.items()]
    broker.produce(broker.dead_letters, value, b"k", partition=0, headers=headers)
    broker.produce(broker.dead_letters, value[:20], b"k", partition=0, headers=headers)
    whole, damaged = follow(capfd, 2, dead_letters=True)
    assert whole["headers"] == ours
    # JSON knows no NaN: a reader that is strict must be able to read the line.
    assert whole["request"] == {**REQUEST, "threshold": "NaN"}
    assert base64.b64decode(damaged["value_base64"]) == value[:20]


def test_it_starts_at_the_end_and_writes_what_comes_after_the_notice(
    broker: Broker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, _ = Codecs().encode_result(as_written(RESULT))
    broker.produce(broker.results, value, b"old", partition=0)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        broker.produce(broker.results, value, b"new", partition=0)

    monkeypatch.setattr(tail_module, "say", say)
    assert [shown["key"] for shown in follow(capfd, 1, begin=Begin())] == ["new"]
    assert said == [f"following {broker.results} from its end, partitions: 4"]


def test_the_last_records_of_all_partitions_come_in_the_order_of_their_times(
    broker: Broker, capfd: pytest.CaptureFixture[str]
) -> None:
    value, _ = Codecs().encode_result(as_written(RESULT))
    for number in range(12):
        broker.produce(broker.results, value, str(number).encode(), partition=number % 3, timestamp=1000 + number)
    assert [shown["key"] for shown in follow(capfd, 5, begin=Begin(last=5))] == ["7", "8", "9", "10", "11"]
    odd = follow(capfd, 3, begin=Begin(last=3), choice=Choice(partition=1))
    assert [shown["key"] for shown in odd] == ["4", "7", "10"]
    # Further back than so many offsets, because others lie between.
    (only,) = follow(capfd, 1, begin=Begin(last=1), choice=Choice(key="0"))
    assert (only["partition"], only["offset"]) == (0, 0)
    assert [shown["key"] for shown in follow(capfd, 2, begin=Begin(offset=2), choice=Choice(partition=0))] == ["6", "9"]


def test_answers_are_found_by_the_id_of_their_request(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        broker.produce(broker.results, Codecs().encode_result(as_written({**RESULT, "id": f"id-{number}"}))[0], b"same")
    (found,) = follow(capfd, 1, choice=Choice(id="id-1"))
    assert found["result"]["id"] == "id-1"


def test_two_places_to_begin_and_a_partition_that_is_not_there_are_wrong_usage(
    broker: Broker, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match="--from-beginning, --last and --offset exclude each other"):
        Begin(from_beginning=True, last=1)
    broker.produce(broker.results, None)
    with pytest.raises(SettingsError, match=r"--partition 9: .* has 0 to 3"):
        follow(capfd, 1, choice=Choice(partition=9))


def test_a_topic_that_is_not_there_yet_is_waited_for(
    broker: Broker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, _ = Codecs().encode_result(as_written(RESULT))
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            broker.produce(broker.results, value)
        said.append(text)

    monkeypatch.setattr(tail_module, "say", say)
    monkeypatch.setattr(tail_module, "_RETRY_S", 0.01)
    assert len(follow(capfd, 1)) == 1
    assert f"{broker.results!r} is not there" in said[0]
    assert said[0].endswith("; waiting")
    assert len(said) == 2


def test_told_to_stop_it_stops_waiting(
    capfd: pytest.CaptureFixture[str], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(tail_module, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(tail_module, "_RETRY_S", 0.01)
    answers = iter([False, False, True, True, True])
    assert follow(capfd, 1, stop=lambda: next(answers)) == []


def test_a_registry_that_is_away_is_waited_for(
    broker: Broker,
    loopback_registry: LoopbackRegistry,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", loopback_registry.url)
    codecs = Codecs(loopback_registry.url, auto_register=True)
    codecs.open(result_topic=broker.results)
    broker.produce(broker.results, codecs.encode_result(as_written(RESULT))[0], partition=0)
    loopback_registry.available = False
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "registry" in text:
            loopback_registry.available = True

    monkeypatch.setattr(tail_module, "say", say)
    monkeypatch.setattr(tail_module, "_RETRY_S", 0.01)
    (shown,) = follow(capfd, 1)
    assert shown["result"] == RESULT
    assert len(said) == 2
    assert said[1].endswith("; waiting")
