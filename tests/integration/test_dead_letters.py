"""`xnli-worker dead-letters` on real Kafka: replays that are killed, fenced or refused, or dead-lettered again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import count, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until
from worker.commands.dead_letters import list_dead_letters
from worker.rules.dead_letter import PREFIX
from worker.rules.replay import Selection

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
DEAD_LETTERS = 2_000

# The command, with a producer that kills the process at its commit of number argv[2], before or after it happens.
DYING = """
import os, signal, sys
from confluent_kafka import Producer
from worker import cli
from worker.kafka import producer

moment, left = sys.argv[1], int(sys.argv[2])

class DyingProducer(Producer):
    def commit_transaction(self, timeout):
        global left
        left -= 1
        if moment == "before" and not left:
            self.flush(10)  # the records of the open transaction are on the broker
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit_transaction(timeout)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

producer.Producer = DyingProducer
sys.exit(cli.main(sys.argv[3:]))
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """A dead-letter topic, the topic its letters came from, and the command with both in its settings."""

    kafka: Kafka
    requests: str
    dead_letters: str
    environment: Mapping[str, str]

    def add(self, numbers: Iterable[int], *, value: bytes = b"v", at_ms: int = 1_000, **said: str) -> None:
        """Dead letters as workers write them: in transactions, some of them aborted, on all partitions."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "transactional.id": self.dead_letters})
        producer.init_transactions(30)
        wanted = list(numbers)
        for begin in range(0, len(wanted), 100):
            for commit in (False, True) if begin % 500 == 0 else (True,):
                producer.begin_transaction()
                for number in wanted[begin : begin + 100]:
                    ours = {"reason": "inference", "topic": self.requests, "partition": "0", "offset": str(number)}
                    headers = {"timestamp": "5", "replays": "0"} | ours | said
                    producer.produce(
                        self.dead_letters,
                        value,
                        b"k%d" % number,
                        number % 3,
                        timestamp=at_ms + number,
                        headers=[("trace", b"1"), *((PREFIX + name, text.encode()) for name, text in headers.items())],
                    )
                if commit:
                    producer.commit_transaction(30)
                else:
                    producer.flush(30)
                    producer.abort_transaction(30)

    def start(self, *arguments: str, program: Sequence[str] = ("-m", "worker.cli")) -> subprocess.Popen[str]:
        meant = ["--yes"] if arguments[0] == "replay" else []  # all of them, where no filter says which
        command = [sys.executable, *program, "dead-letters", *arguments, *meant]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, stdout=pipe, stderr=pipe)

    def run(self, *arguments: str, program: Sequence[str] = ("-m", "worker.cli")) -> tuple[int, list[Any], str]:
        """Exit code, what was written as JSON lines, stderr."""
        with self.start(*arguments, program=program) as process:
            out, err = process.communicate(timeout=90)
        assert "Traceback" not in err
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    def replayed(self, topic: str | None = None) -> list[Message]:
        return read_all(self.kafka.bootstrap_servers, topic or self.requests)

    def wait_for(self, records: int, topic: str | None = None) -> None:
        """Return once a topic (the origin) has more than so many records, markers and aborted ones included."""
        name = topic or self.requests
        wait_until(lambda: count(self.kafka.bootstrap_servers, name) > records, 60, f"{records} records in {name}")

    def keys(self, topic: str | None = None) -> Counter[bytes]:
        return Counter(bytes(message.key() or b"") for message in self.replayed(topic))


@pytest.fixture
def scene(kafka: Kafka, topic: TopicFactory) -> Scene:
    requests, dead_letters = topic("requests", partitions=2), topic("dead", partitions=3)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    settings = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": requests,
        "XNLI_TOPICS__INPUT": requests,
        "XNLI_TOPICS__DEAD_LETTER": dead_letters,
    }
    return Scene(kafka, requests, dead_letters, kept | settings)


def once(numbers: Iterable[int]) -> Counter[bytes]:
    return Counter(b"k%d" % number for number in numbers)


def test_a_replay_that_is_killed_again_and_again_sends_each_dead_letter_once(scene: Scene) -> None:
    scene.add(range(DEAD_LETTERS))
    draw = random.Random(7)
    for quarter in (1, 2, 3):
        with scene.start("replay", "--rate", "1500") as process:
            scene.wait_for(quarter * DEAD_LETTERS // 4)
            time.sleep(draw.random() / 4)  # somewhere within the next transactions
            assert process.poll() is None
            process.kill()
    code, (tally,), err = scene.run("replay", "--rate", "1500")
    assert "goes on where it stood" in err
    assert (code, tally["complete"]) == (0, True)
    assert 0 < tally["replayed"] < DEAD_LETTERS / 2
    assert scene.keys() == once(range(DEAD_LETTERS))


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.acceptance), "after"])
def test_a_replay_that_dies_at_its_commit_sends_each_dead_letter_once(scene: Scene, moment: str) -> None:
    scene.add(range(DEAD_LETTERS))
    code, _, _ = scene.run("replay", program=("-c", DYING, moment, "3"))
    assert code == -signal.SIGKILL
    code, (tally,), _ = scene.run("replay")
    assert code == 0
    assert tally["replayed"] == DEAD_LETTERS - (1_500 if moment == "after" else 1_000)
    assert scene.keys() == once(range(DEAD_LETTERS))


def test_a_run_that_was_overtaken_sends_nothing_more(scene: Scene) -> None:
    scene.add(range(DEAD_LETTERS))
    with scene.start("replay", "--rate", "1500") as first:
        scene.wait_for(0)
        first.send_signal(signal.SIGSTOP)
        assert scene.run("replay")[0] == 0
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "another run of campaign" in err
    assert json.loads(out)["complete"] is False
    assert scene.keys() == once(range(DEAD_LETTERS))


@pytest.mark.acceptance
def test_a_replay_that_is_told_to_stop_says_so_and_goes_on_later(scene: Scene) -> None:
    scene.add(range(300))
    with scene.start("replay", "--rate", "100") as process:
        scene.wait_for(0)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(out)["complete"] is False
    assert scene.run("replay")[0] == 0
    assert scene.keys() == once(range(300))


def test_what_is_sent_and_what_the_next_run_sends(scene: Scene) -> None:
    # Nobody joins the campaign's group, so its protocol must not matter; in the other tests it is the classic one.
    scene = replace(scene, environment={**scene.environment, "XNLI_KAFKA__GROUP_PROTOCOL": "consumer"})
    scene.add(range(20), replays="2")
    scene.add(range(20, 25), replays="3")
    scene.add(range(25, 30), topic="payments")
    before_ms = int(time.time() * 1000)
    code, (tally,), err = scene.run("replay")
    assert code == 1  # something was left
    assert (tally["replayed"], tally["refused"]) == (20, {"loop": 5, "origin": 5})
    assert err.count("was replayed 3 times") == err.count("'payments', which is none of topics.input") == 5
    found = scene.replayed()
    assert Counter(m.key() for m in found) == once(range(20))
    for message in found:
        headers = dict(message.headers() or [])
        assert set(headers) == {
            "trace",
            *(PREFIX + name for name in ("topic", "partition", "offset", "timestamp", "replays", "campaign")),
        }
        assert (headers["xnli.dlq.replays"], headers["xnli.dlq.timestamp"]) == (b"3", b"5")
        assert message.value() == b"v"
        assert message.timestamp()[1] >= before_ms

    scene.add(range(30, 40))
    assert scene.run("replay")[1][0]["replayed"] == 10
    assert scene.run("replay", "--replays", "3", "--max-replays", "4")[1][0]["replayed"] == 5
    assert scene.keys() == once([*range(25), *range(30, 40)])


@pytest.mark.acceptance
def test_other_filters_are_another_campaign_and_pass_nothing_over_for_it(scene: Scene) -> None:
    scene.add(range(30), reason="inference")
    scene.add(range(30, 60), reason="crash")
    _, (tally,), _ = scene.run("replay", "--reason", "crash")
    assert (tally["replayed"], tally["passed_over"]) == (30, 30)
    assert scene.run("replay", "--reason", "inference")[1][0]["replayed"] == 30
    assert scene.keys() == once(range(60))


def test_a_few_first_and_then_the_rest_to_a_topic_of_choice(scene: Scene, topic: TopicFactory) -> None:
    elsewhere = topic("elsewhere")
    scene.add(range(50))
    arguments = ("replay", "--to", elsewhere)
    _, would, err = scene.run(*arguments, "--dry-run")
    assert Counter(row["to"] for row in would) == {elsewhere: 50}
    assert "would send 50 and refuse 0" in err
    assert scene.run(*arguments, "--limit", "10")[1][0]["replayed"] == 10
    assert len(scene.run(*arguments, "--dry-run")[1]) == 40
    assert scene.run(*arguments)[1][0]["replayed"] == 40
    assert scene.keys(elsewhere) == once(range(50))
    assert scene.keys() == Counter()


def test_what_the_destination_refuses_for_its_size_is_left_and_told(scene: Scene, topic: TopicFactory) -> None:
    small = topic("small", config={"max.message.bytes": "20000"})
    scene.add(range(5))
    scene.add(range(5, 7), value=random.Random(7).randbytes(50_000))
    scene.add(range(7, 12))
    code, (tally,), err = scene.run("replay", "--to", small)
    assert code == 1
    assert (tally["replayed"], tally["refused"]) == (10, {"too_large": 2})
    assert err.count(f"{small} refuses it") == 2
    assert scene.keys(small) == once([*range(5), *range(7, 12)])


@pytest.mark.acceptance
def test_a_dead_letter_topic_made_again_is_replayed_from_its_beginning(scene: Scene, kafka: Kafka) -> None:
    """Though the broker took the campaign's progress in the former one for progress in it."""
    scene.add(range(30))
    assert scene.run("replay", "--campaign", "a")[0] == 0
    group = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": f"{scene.requests}.replay.a"})
    former = group.committed([TopicPartition(scene.dead_letters, n) for n in range(3)], timeout=30)
    kafka.make_again(scene.dead_letters, 3)
    scene.add(range(100, 160))
    group.commit(offsets=former, asynchronous=False)
    group.close()
    code, (tally,), err = scene.run("replay", "--campaign", "a")
    assert (code, tally["replayed"]) == (0, 60)
    assert "was made again" in err
    assert scene.keys() == once([*range(30), *range(100, 160)])


@pytest.mark.acceptance
def test_a_destination_that_is_not_there_is_no_progress(scene: Scene) -> None:
    scene.add(range(5))
    code, _, err = scene.run("replay", "--to", f"missing-{scene.requests}")
    assert code == 1
    assert "is not there" in err
    assert len(scene.run("replay", "--to", f"missing-{scene.requests}", "--dry-run")[1]) == 5


def test_times_are_found_though_dead_letters_are_not_in_the_order_of_time(
    scene: Scene, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's time index gives the place to begin, and must not skip a dead letter."""
    for name, value in scene.environment.items():
        if name.startswith("XNLI_"):
            monkeypatch.setenv(name, value)

    def listed(selection: Selection) -> dict[str, int]:
        list_dead_letters(None, selection, limit=None, stop_requested=lambda: False)
        rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        return {row["position"]: row["timestamp"] for row in rows}

    draw = random.Random(7)
    for begin in range(0, 300, 30):
        scene.add(range(begin, begin + 30), at_ms=draw.randrange(5_000))
    at_ms = listed(Selection())
    assert len(at_ms) == 300
    for bound_ms in [0, *draw.sample(sorted(at_ms.values()), 5), 9_000]:
        assert listed(Selection(since_ms=bound_ms)) == {p: ms for p, ms in at_ms.items() if ms >= bound_ms}
        assert listed(Selection(until_ms=bound_ms)) == {p: ms for p, ms in at_ms.items() if ms < bound_ms}


def test_a_list_does_not_wait_for_a_transaction_that_is_open(scene: Scene) -> None:
    scene.add(range(10))
    worker = Producer(
        {"bootstrap.servers": scene.kafka.bootstrap_servers, "transactional.id": f"{scene.requests}-open"}
    )
    worker.init_transactions(30)
    worker.begin_transaction()
    worker.produce(scene.dead_letters, b"undecided", partition=0)
    worker.flush(30)
    assert len(scene.run("list")[1]) == 10
    assert scene.run("replay")[1][0]["replayed"] == 10
    worker.commit_transaction(30)
    assert len(scene.run("list")[1]) == 11


@pytest.mark.timeout(180)
def test_a_request_that_dies_again_comes_back_with_its_first_origin_until_it_is_refused(
    scene: Scene, topic: TopicFactory, tmp_path: Path
) -> None:
    environment = {name: value for name, value in scene.environment.items() if name.startswith("XNLI_")} | {
        "XNLI_TOPICS__OUTPUT": topic("results"),
        "XNLI_RETRY__MAX_ATTEMPTS": "1",
    }
    send(scene.kafka.bootstrap_servers, scene.requests, [("k", request("k", "poison"))])
    (sent,) = scene.replayed()
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        campaign = ""
        for replays in range(3):
            # Each is followed by the marker of its transaction.
            scene.wait_for(2 * replays + 1, scene.dead_letters)
            rows = scene.run("list", "--replays", str(replays))[1]
            assert [row["origin"] for row in rows] == [
                {
                    "topic": scene.requests,
                    "partition": sent.partition(),
                    "offset": sent.offset(),
                    "timestamp": sent.timestamp()[1],
                }
            ]
            if campaign:  # what it sent and what died again it sends no second time
                code, (tally,), err = scene.run("replay", "--replays", str(replays), "--campaign", campaign)
                assert (code, tally["replayed"], tally["refused"]) == (1, 0, {"returned": 1})
                assert f"was sent by this campaign ({campaign}) and died again" in err
            code, (tally,), _ = scene.run("replay", "--replays", str(replays), "--max-replays", "2")
            expected = (0, 1, {}) if replays < 2 else (1, 0, {"loop": 1})
            assert (code, tally["replayed"], tally["refused"]) == expected
            campaign = tally["campaign"]
        assert worker.stop() == 0
    assert len(scene.replayed()) == 3
