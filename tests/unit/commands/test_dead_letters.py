from __future__ import annotations

import base64
import json
import sys
import uuid
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.brokers.registry import LoopbackRegistry
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.commands import dead_letter_listing
from worker.commands.campaign import campaign_of
from worker.commands.dead_letters import list_dead_letters, select, show
from worker.commands.dead_letters_replay import replay
from worker.errors import FatalError, NoSuchDeadLetter, SettingsError, TopicMissing
from worker.kafka.embedded import EmbeddedBroker
from worker.rules.dead_letter import PREFIX
from worker.rules.replay import Selection
from worker.settings import Settings, load

REQUEST = json_request.request({"id": "1", "text": "Tōkyō 東京", "labels": ["a"]})
SAID = {
    "reason": "inference",
    "stage": "inference",
    "error": "ValueError",
    "message": "no answer: ü",
    "topic": "requests",
    "partition": "3",
    "offset": "77",
    "timestamp": "1234",
    "group": "g",
    "attempts": "5",
    "replays": "1",
    "worker": "w",
}


class Broker:
    """A dead-letter topic that nobody else uses, on the embedded broker."""

    def __init__(self, embedded: EmbeddedBroker, topic: str) -> None:
        self.topic = topic
        self._client = Producer({"bootstrap.servers": embedded.bootstrap_servers, "log_level": 0})

    def add(self, value: bytes | None = b"v", key: bytes | None = b"k", partition: int = 0, **said: str) -> None:
        headers = [(f"{PREFIX}{name}", text.encode()) for name, text in (SAID | said).items()]
        self.produce(value, key, partition=partition, headers=headers, timestamp=1234)

    def produce(self, value: bytes | None, key: bytes | None = None, **more: Any) -> None:
        self._client.produce(self.topic, value, key, **more)
        assert self._client.flush(10) == 0


@pytest.fixture
def broker(embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    topic = f"dead-letters-{uuid.uuid4().hex[:8]}"
    embedded.create(topic)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", embedded.bootstrap_servers)
    monkeypatch.setenv("XNLI_TOPICS__DEAD_LETTER", topic)
    monkeypatch.setenv("XNLI_TOPICS__INPUT", "requests")
    return Broker(embedded, topic)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """stdout as a terminal of 80 columns. Not a fixture: pytest exchanges stdout between set-up and test."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


def listed(capfd: pytest.CaptureFixture[str], selection: Selection | None = None, limit: int | None = None) -> Any:
    list_dead_letters(None, selection or Selection(), limit=limit, stop_requested=lambda: False)
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def shown(capfd: pytest.CaptureFixture[str], position: str) -> Any:
    show(None, position)
    return json.loads(capfd.readouterr().out)


def go(*, dry_run: bool = False, limit: int | None = None, to: str | None = None) -> bool:
    return replay(
        None,
        Selection(),
        to=to,
        max_replays=3,
        campaign=None,
        limit=limit,
        rate=None,
        dry_run=dry_run,
        stop_requested=lambda: False,
    )


# list -----------------------------------------------------------------------------------------------------------------


def test_a_dead_letter_in_a_list(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    broker.add(partition=2)
    assert listed(capfd) == [
        {
            "position": "2:0",
            "timestamp": 1234,
            "key": "k",
            "reason": "inference",
            "stage": "inference",
            "error": "ValueError",
            "message": "no answer: ü",
            "origin": {"topic": "requests", "partition": 3, "offset": 77, "timestamp": 1234},
            "attempts": 5,
            "replays": 1,
            "group": "g",
            "worker": "w",
            "truncated": None,
            "unreadable": None,
            "id": None,
        }
    ]


def test_all_partitions_are_listed_to_their_ends_and_what_is_selected_only(
    broker: Broker, capfd: pytest.CaptureFixture[str]
) -> None:
    for partition in range(4):
        for reason in ("crash", "inference", "crash"):
            broker.add(partition=partition, reason=reason, key=str(partition).encode())
    assert len(listed(capfd)) == 12
    assert {row["position"] for row in listed(capfd, Selection(reasons=frozenset({"inference"})))} == {
        f"{partition}:1" for partition in range(4)
    }
    assert [row["position"] for row in listed(capfd, Selection(key="2"))] == ["2:0", "2:1", "2:2"]
    assert len(listed(capfd, limit=5)) == 5


def test_a_topic_without_dead_letters_is_an_empty_list(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    assert listed(capfd) == []


def test_a_record_of_somebody_else_is_listed_with_what_is_known(
    broker: Broker, capfd: pytest.CaptureFixture[str]
) -> None:
    broker.produce(None, b"\xff", partition=0, headers=[(f"{PREFIX}partition", b"three"), (f"{PREFIX}topic", None)])
    (row,) = listed(capfd)
    assert row["key"] == "\\xff"
    assert row["reason"] is None
    assert row["origin"] == {"topic": None, "partition": None, "offset": None, "timestamp": None}
    assert row["replays"] == 0


def test_a_terminal_gets_a_table_and_no_commands_of_a_stranger(
    broker: Broker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    value, _ = Codecs().encode_request(REQUEST)
    mend = "set limits.max_text_chars, and send the request again " * 4
    broker.add(value, message=f"[red]two\nlines\x1b[2J\x9b1m {mend}", reason="crash", key=b"ticket-4711")
    list_dead_letters(None, Selection(), limit=None, stop_requested=lambda: False)
    out, err = capfd.readouterr()
    assert "\x1b" not in out
    assert "\x9b" not in out
    head, row, *message = out.splitlines()
    assert head.split() == ["position", "reason", "age", "tries", "key", "id"]
    cells = row.split()
    assert (cells[:2], cells[3:]) == (["0:0", "crash"], ["5+1", "ticket-4711", "1"])
    said = " ".join(line.strip() for line in message)
    assert said.startswith("[red]two lines")
    assert said.endswith(mend.strip())  # advice is never cut
    assert max(map(len, message)) <= 80
    assert "1 dead letter\n" in err


def test_all_dead_letters_are_sent_only_if_that_is_meant(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.add()

    def asked() -> bool:
        return replay(
            None,
            Selection(),
            to=None,
            max_replays=3,
            campaign=None,
            limit=None,
            rate=None,
            dry_run=False,
            asks=True,
            stop_requested=lambda: False,
        )

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(SettingsError, match=r"without a filter, replay sends every dead letter.*--dry-run.*--yes"):
        asked()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "\n"))
    assert not asked()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "y\n"))
    with pytest.raises(FatalError, match="needs transactions"):  # so it was about to
        asked()


def test_a_topic_that_is_not_there_is_an_error(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XNLI_TOPICS__DEAD_LETTER", "missing")
    with pytest.raises(TopicMissing, match="'missing' is not there"):
        list_dead_letters(None, Selection(), limit=None, stop_requested=lambda: False)


# show -----------------------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_shown_whole(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    value, _ = Codecs().encode_request(REQUEST)
    broker.add(b"before", partition=1)
    broker.add(value, partition=1)
    found = shown(capfd, "1:1")
    assert found["headers"] == {f"{PREFIX}{name}": text for name, text in SAID.items()}
    assert (found["partition"], found["offset"], found["timestamp"], found["key"]) == (1, 1, 1234, "k")
    assert found["request"] == REQUEST


def test_a_payload_that_does_not_decode_is_shown_as_it_is(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    broker.add(b"\xff" * 2000)
    found = shown(capfd, "0:0")
    assert "the value begins" in found["error"]
    assert base64.b64decode(found["value_base64"]) == b"\xff" * 1024


def test_a_dead_letter_is_shown_though_the_registry_is_away(
    broker: Broker,
    loopback_registry: LoopbackRegistry,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", loopback_registry.url)
    codecs = Codecs(loopback_registry.url, auto_register=True)
    codecs.open(request_topic="requests")
    value, _ = codecs.encode_request(REQUEST)
    broker.add(value)
    assert shown(capfd, "0:0")["request"] == REQUEST
    loopback_registry.available = False
    found = shown(capfd, "0:0")
    assert loopback_registry.url in found["error"]
    assert base64.b64decode(found["value_base64"]) == value


def test_a_terminal_gets_indented_json(
    broker: Broker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch)
    broker.add(b"\xff", message="\x1b[2J")
    show(None, "0:0")
    out = capfd.readouterr().out
    assert "\x1b[2J" not in out
    assert json.loads(out)["headers"]["xnli.dlq.message"] == "\x1b[2J"
    assert '\n  "partition": 0' in out


@pytest.mark.parametrize(
    ("position", "message"), [("0:1", "holds 0 to 0"), ("1:0", "is empty"), ("9:0", "partition 9 does not exist")]
)
def test_nothing_lies_there(broker: Broker, position: str, message: str) -> None:
    broker.add()
    with pytest.raises(NoSuchDeadLetter, match=message):
        show(None, position)


@pytest.mark.parametrize("position", ["", "0", "0:", ":0", "-1:0", "0:0:0", "a:b", "0:1\n"])
def test_a_position_that_is_none(position: str) -> None:
    with pytest.raises(SettingsError, match="PARTITION:OFFSET"):
        show(None, position)


# What is asked for ----------------------------------------------------------------------------------------------------


def test_times_and_ages() -> None:
    found = select(since="1970-01-01T00:00:01Z", until="1970-01-01T01:00:02+01:00")
    assert (found.since_ms, found.until_ms) == (1_000, 2_000)
    local = datetime(2026, 1, 31, 12).astimezone()
    assert select(since="2026-01-31T12:00").since_ms == int(local.timestamp() * 1000)
    for age, seconds in {"90s": 90, "15m": 900, "2h": 7_200, "3d": 259_200}.items():
        expected_ms = (datetime.now().astimezone() - timedelta(seconds=seconds)).timestamp() * 1000
        assert select(since=age).since_ms == pytest.approx(expected_ms, abs=5_000)


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "-2h", "2026-13-01", "999999d", "9999999999d", "1 h"])
def test_what_is_neither_time_nor_age(text: str) -> None:
    with pytest.raises(SettingsError, match="--until"):
        select(until=text)


def test_an_unknown_reason_is_told_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'slow': no such reason; there are malformed, .*, exhausted"):
        select(reasons=["slow"])


def test_an_age_is_no_bound_of_a_replay_and_the_time_to_write_is_told() -> None:
    """It would mean something else when the replay goes on."""
    with pytest.raises(SettingsError, match=r"write the time: --since (\S+)") as refused:
        select(since="2h", ages=False)
    written = str(refused.value).rpartition(" ")[2]
    assert select(since=written, ages=False).since_ms == pytest.approx(select(since="2h").since_ms, abs=5_000)


@pytest.mark.parametrize(
    ("seconds", "age"), [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")]
)
def test_ages_are_shown_as_they_are_asked_for(seconds: int, age: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.commands.dead_letter_listing.time.time", lambda: 1_000_000.0 + seconds)
    assert dead_letter_listing.age(1_000_000_000) == age


# replay: the rest is proved on real Kafka -----------------------------------------------------------------------------


def settings() -> Settings:
    return load(environ={"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none", "XNLI_MODEL__NAME": "none"})


def test_the_same_command_is_the_same_campaign_and_another_is_another() -> None:
    known = settings()
    base = campaign_of(known, select(reasons=["crash", "invalid"]), None, 3, None)
    same = campaign_of(known, select(reasons=["invalid", "crash", "crash"]), None, 9, None)
    assert base.name == same.name
    assert base.group == f"xnli-worker.replay.{base.name}"
    others = [
        campaign_of(known, select(), None, 3, None),
        campaign_of(known, select(reasons=["crash"]), None, 3, None),
        campaign_of(known, select(reasons=["crash", "invalid"], partition=0), None, 3, None),
        campaign_of(known, select(reasons=["crash", "invalid"]), "elsewhere", 3, None),
    ]
    assert len({base.name, *(other.name for other in others)}) == 5


def test_a_named_campaign_is_called_so() -> None:
    assert campaign_of(settings(), select(), None, 3, "2026-01.bad_deploy").group == (
        "xnli-worker.replay.2026-01.bad_deploy"
    )
    with pytest.raises(SettingsError, match="--campaign"):
        campaign_of(settings(), select(), None, 3, "bad deploy")


def test_the_dead_letter_topic_is_no_destination() -> None:
    with pytest.raises(SettingsError, match=r"--to 'xnli\.dead-letters' is the dead-letter topic itself"):
        campaign_of(settings(), select(), "xnli.dead-letters", 3, None)


def test_a_rehearsal_tells_what_would_be_sent_and_what_not(broker: Broker, capfd: pytest.CaptureFixture[str]) -> None:
    broker.add()
    broker.add(replays="3")
    broker.add(topic="payments")
    broker.add(truncated="9000000")
    assert go(dry_run=True)
    out, err = capfd.readouterr()
    assert [json.loads(line)["to"] for line in out.splitlines()] == [
        "requests",
        "refused: loop",
        "refused: origin",
        "refused: truncated",
    ]
    assert "would send 1 and refuse 3" in err
    assert go(dry_run=True, to="elsewhere", limit=1)
    assert [json.loads(line)["to"] for line in capfd.readouterr().out.splitlines()] == ["elsewhere"]


def test_without_transactions_nothing_is_replayed(broker: Broker) -> None:
    broker.add()
    with pytest.raises(FatalError, match="replay needs transactions, and there are none: the embedded broker"):
        go()
