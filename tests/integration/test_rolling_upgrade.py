"""Workers of an older commit and of this one in one group: each understands what the other wrote.

That is offset metadata, retry headers, results and their schema. Nothing is lost, doubled or dead-lettered, and order
is kept, on the way up and on the way back.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import warnings
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.brokers.registry import LoopbackRegistry
from tests.conftest import TopicFactory
from tests.faults.stage import PARTITIONS, Size, Stage
from tests.faults.verifier import Topics
from tests.faults.workers import ROOT, WorkerProcess

pytestmark = pytest.mark.kafka

# The last commit before quarantine went by evidence: its metadata, headers and schemas must be understood.
OLDER = "ac90786ce3c3068d68dc55c05ba4852f49a10adb"
WORKERS = 2
DELAYS_S = (0.5, 1.0)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the older commit."""
    folder = tmp_path_factory.mktemp("older")
    archive = folder / "older.tar"
    command = ["git", "-C", str(ROOT), "archive", f"--output={archive}", OLDER, "worker", "tests", "schemas"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"rolling upgrades are not tested: git has no commit {OLDER[:7]} here (git fetch --unshallow): {error}"
        warnings.warn(why, stacklevel=1)  # in the summary even where skips are not listed
        pytest.skip(why)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    return folder


def _topics(kafka: Kafka, topic: TopicFactory) -> Topics:
    topics = Topics(*(topic(hint, partitions=PARTITIONS) for hint in ("requests", "results", "dead")))
    for delay_s in DELAYS_S:
        kafka.create_topic(f"{topics.requests}.retry.{delay_s:g}s", 2)
    return topics


def _register(registry: LoopbackRegistry, topics: Topics, checkout: Path) -> None:
    """Register the schemas of a checkout, as its operators did before they upgrade."""
    for topic, file in ((topics.requests, "inference-request.avsc"), (topics.results, "inference-result.avsc")):
        body = json.dumps({"schema": (checkout / "schemas" / file).read_text("utf-8")}).encode()
        status, answer = registry.answer("POST", f"/subjects/{topic}-value/versions", body)
        assert status == 200, answer


def _replace_all(stage: Stage, checkout: Path, *, kill: bool) -> None:
    """A rolling deploy under load: one worker after the other is replaced by one of another checkout."""
    for leaver in stage.members[:]:
        newcomer = stage.join(checkout=checkout)

        def answers(newcomer: WorkerProcess = newcomer) -> bool:
            stage.feed(0.001)
            return bool(newcomer.events("batch"))

        stage.until(answers, "the newcomer's first batch")
        stage.feed(0.03, flaky=3)
        if kill and leaver is stage.members[0]:
            leaver.kill()
            stage.members.remove(leaver)
        else:
            stage.leave(leaver)


def _no_verdict(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        assert not worker.events("quarantined"), worker.log_path
        assert not [e for e in worker.events() if e.get("reason") == "crash"], worker.log_path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("messages", "kill", "protocol", "is_registered"),
    [
        (4_000, False, "classic", True),
        pytest.param(20_000, True, "classic", False, marks=pytest.mark.acceptance),
        pytest.param(20_000, True, "consumer", True, marks=pytest.mark.acceptance),
    ],
)
def test_up_and_back_under_load(
    kafka: Kafka,
    topic: TopicFactory,
    tmp_path: Path,
    older: Path,
    messages: int,
    kill: bool,
    protocol: str,
    is_registered: bool,
) -> None:
    settings = {
        "XNLI_KAFKA__GROUP_PROTOCOL": protocol,
        "XNLI_TOPICS__RETRY": ",".join(f"{delay_s:g}" for delay_s in DELAYS_S),
        # A flaky text succeeds at its third attempt in one process, and processes change.
        "XNLI_RETRY__MAX_ATTEMPTS": "20",
        "XNLI_TEST_SECONDS_PER_BATCH": "0.1",
    }
    if protocol == "consumer":  # whose time-outs are the broker's
        settings["XNLI_KAFKA__CONSUMER_PROPERTIES"] = '{"max.poll.interval.ms": 8000}'
    topics = _topics(kafka, topic)
    with LoopbackRegistry() as registry:
        _register(registry, topics, older)
        stage = Stage(
            kafka,
            topics,
            Size(messages, outage_s=30.0),
            "exactly_once",
            seed=5,
            folder=tmp_path,
            settings=settings,
            registry=registry if is_registered else None,
        )
        try:
            seen = [stage.join(checkout=older) for _ in range(WORKERS)]
            stage.until(lambda: all(member.events("rebalance") for member in stage.members), "the group to form")
            for checkout in (ROOT, older, ROOT):
                _replace_all(stage, checkout, kill=kill)
                seen += stage.members
            stage.feed(1.0)
            found = stage.finish()
            retried = len(stage.flaky)
        finally:
            stage.close()
    assert (found.lost, found.duplicated, found.dead_letters, found.out_of_order) == ((), (), 0, 0)
    assert found.results == messages
    assert stage.restarts == 0
    assert retried
    _no_verdict(seen)


@pytest.mark.acceptance
@pytest.mark.timeout(240)
def test_starts_that_idle_older_workers_left_behind_quarantine_nothing(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, older: Path
) -> None:
    # An older worker counts a start when a partition is assigned, and its orderly stop cannot take it back.
    topics = _topics(kafka, topic)
    environment = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
    }
    for turn in range(3):
        with WorkerProcess(environment, tmp_path / f"older-{turn}.log", checkout=older) as worker:
            worker.wait_for("rebalance")
            assert worker.stop() == 0
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        assert worker.stop() == 0
        _no_verdict([worker])
