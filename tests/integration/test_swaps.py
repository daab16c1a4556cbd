"""The model is swapped under load, on real Kafka: nothing is lost or doubled; each result is of the model it names."""

from __future__ import annotations

import json
import random
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.families.revisions import Link, calibrate, revision
from tests.faults.verifier import Topics, account, group_lag, read_all, send
from tests.faults.workers import REAL, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.demo.play import SAMPLES
from worker.rules.calibration import Temperature

pytestmark = pytest.mark.kafka

CODECS = Codecs()
LABELS = ("economy", "sport", "cooking")
TEMPERATURES = (2.0, 3.0)  # of the two revisions' calibrations
AT_ONCE = 40  # messages before a swap, and as many while the other model is loaded


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("revisions")
    return revision(folder / "one", 1.0), revision(folder / "two", 0.8)


class Load:
    """Requests with texts of the demo, each with a key of its own."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        lines = SAMPLES.read_text(encoding="utf-8").splitlines()
        self._texts = [json.loads(line)["text"] for line in lines]
        self.sent: dict[str, str] = {}

    def send(self, count: int) -> None:
        def records() -> Iterator[tuple[str, bytes]]:
            for _ in range(count):
                key = f"k{len(self.sent)}"
                text = self.sent[key] = f"{self._texts[len(self.sent) % len(self._texts)]} {key}"
                asked = {"id": key, "text": text, "labels": list(LABELS)}
                yield key, CODECS.encode_request(json_request.request(asked))[0]

        send(self._kafka.bootstrap_servers, self._topic, records())


class Stage:
    """A worker with the real model behind a link, and what was sent to it."""

    def __init__(
        self, kafka: Kafka, topic: TopicFactory, folder: Path, revisions: tuple[Path, Path], guarantee: str
    ) -> None:
        self._kafka = kafka
        self.topics = Topics(topic("requests", partitions=4), topic("results", partitions=4), topic("dead"))
        self._revisions = revisions
        self._link = Link(folder / "current", revisions[0])
        self._swaps = 0
        self.load = Load(kafka, self.topics.requests)
        calibrations = folder / "calibrations"
        for number, (path, temperature) in enumerate(zip(revisions, TEMPERATURES, strict=True)):
            calibrate(calibrations / f"topics-{number}.json", path, LABELS, temperature)
        environment = self.topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": self.topics.requests,
            "XNLI_KAFKA__CONSUMER_PROPERTIES": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}',
            "XNLI_DELIVERY__GUARANTEE": guarantee,
            "XNLI_MODEL__NAME": str(self._link.path),
            "XNLI_MODEL__RELOAD": "signal",
            "XNLI_MODEL__CALIBRATION": str(calibrations),
            "XNLI_CACHE__MAX_PAIRS": "1000",
        }
        self.worker = WorkerProcess(environment, folder / "worker.log", REAL)
        self.worker.wait_for("rebalance", 240)

    def begin_swap(self) -> None:
        """Messages, another model, and messages while it is loaded."""
        self.load.send(AT_ONCE)
        self._swaps += 1
        self._link.to(self._revisions[self._swaps % 2])
        self.worker.signal(signal.SIGHUP)
        self.load.send(AT_ONCE)

    def swap(self) -> None:
        before = len(self.worker.events("model_swapped"))
        self.begin_swap()
        wait_until(lambda: len(self.worker.events("model_swapped")) > before, 120, f"swap {self._swaps}", self.worker)

    def kill(self) -> None:
        """SIGKILL, and a start after it."""
        started = len(self.worker.events("started"))
        self.worker.kill()
        self.worker.restart()
        wait_until(lambda: len(self.worker.events("started")) > started, 240, "the start", self.worker)

    def finish(self) -> None:
        """Everything is answered, and the worker drains."""
        group = self.topics.requests
        wait_until(lambda: group_lag(self._kafka.bootstrap_servers, group, group) == 0, 120, "the end", self.worker)

    def metrics(self) -> dict[str, float]:
        port = self.worker.events("started")[-1]["http_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        return {
            sample.name + "".join(sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }

    def require_exact(self, guarantee: str, *, killed: bool) -> None:
        """An account of every message; and the scores of a sample, computed once more by the model that it names."""
        found = account(self._kafka.bootstrap_servers, self.topics)
        assert (found.inputs, found.lost, found.dead_letters) == (len(self.load.sent), (), 0)
        if guarantee == "exactly_once" or not killed:
            assert found.duplicated == ()
            assert found.out_of_order == 0
        results = [
            CODECS.read_result(message.value() or b"", ())
            for message in read_all(self._kafka.bootstrap_servers, self.topics.results)
        ]
        self._require_revisions(results)

    def _require_revisions(self, results: list[dict[str, Any]]) -> None:
        from tests.integration.engines import scores  # noqa: PLC0415 (imports torch)

        draw = random.Random(1)
        wrong = scored_otherwise = 0
        by_path = {path: scores(path, self.load.sent, LABELS) for path in self._revisions}
        revisions = {by_path[path].revision: by_path[path] for path in self._revisions}
        assert {result["model"]["revision"] for result in results} == set(revisions)
        temperatures = {by_path[path].revision: one for path, one in zip(self._revisions, TEMPERATURES, strict=True)}
        for result in results:
            labels = result["outcome"]["labels"]
            calibrator = Temperature(temperatures[result["model"]["revision"]])
            wanted = calibrator(range(len(labels)), [label["score"] for label in labels])
            assert [label["calibrated"] for label in labels] == pytest.approx(wanted, abs=1e-6)
        for result in draw.sample(results, min(200, len(results))):
            revision = result["model"]["revision"]
            (other,) = revisions.keys() - {revision}
            given = {label["label"]: label["score"] for label in result["outcome"]["labels"]}
            wrong += not revisions[revision].agrees(result["id"], given)
            scored_otherwise += not revisions[other].agrees(result["id"], given)
        assert wrong == 0
        assert scored_otherwise > 100  # or the two would not tell which one it was


def _play(
    kafka: Kafka, topic: TopicFactory, folder: Path, revisions: tuple[Path, Path], guarantee: str, swaps: int
) -> None:
    stage = Stage(kafka, topic, folder, revisions, guarantee)
    kill_at = swaps // 2 if swaps > 5 else 0
    with stage.worker:
        for number in range(1, swaps + 1):
            if number == kill_at:
                stage.begin_swap()
                stage.kill()
            else:
                stage.swap()
            if number in {2, kill_at + 2}:  # of the process that goes on to the end
                resident = stage.metrics()["xnli_worker_process_resident_memory_bytes"]
        stage.finish()
        wait_until(
            lambda: stage.metrics()["xnli_worker_process_resident_memory_bytes"] < 1.1 * resident,
            90,
            f"memory to return to {resident / 1e6:.0f} MB",
            stage.worker,
            every_s=1.0,
        )
        now = stage.metrics()
        assert now["xnli_worker_model_swaps_totalfailed"] == 0
        assert len(stage.worker.events("rebalance")) == 1 + bool(kill_at)
        assert stage.worker.stop() == 0
    stage.require_exact(guarantee, killed=bool(kill_at))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_swaps_under_load(kafka: Kafka, topic: TopicFactory, tmp_path: Path, revisions: tuple[Path, Path]) -> None:
    _play(kafka, topic, tmp_path, revisions, "exactly_once", 5)


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_fifty_swaps_with_a_kill_among_them(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, revisions: tuple[Path, Path], guarantee: str
) -> None:
    _play(kafka, topic, tmp_path, revisions, guarantee, 50)
