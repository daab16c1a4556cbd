"""What waiting costs those that do not wait: latency of the main topic with and without records in a retry topic.

    python -m tests.bench.retry [--rate 200] [--seconds 20] [--share 0.05] [--delay 3] [--runs 3]

A writer sends requests at a steady rate to a worker whose model answers at once. In every other run a share of them
fails on the first attempt, goes to the retry topic and comes back when the delay is over: all the while some wait
there. Latency is from the send to the arrival at a read_committed consumer, transaction included, of requests that
never fail: the same places in both kinds of run. Percentiles of each run, medians of the runs; beside them the seconds
that the others took, of which the delay is asked for. Needs Java and Maven, or ``XNLI_TEST_KAFKA=host:port``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.faults.verifier import request
from tests.faults.workers import WorkerProcess, wait_until

PARTITIONS = 4
WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: ``rate`` requests a second, for ``seconds`` after the warm-up, a share of them marked."""

    rate: float
    seconds: float
    share: float
    delay_s: float

    def marked(self) -> list[bool]:
        """Which requests fail once, where any do; the same in every run."""
        draw = random.Random(7)
        return [draw.random() < self.share for _ in range(round(self.rate * (WARM_UP_S + self.seconds)))]


def _run(kafka: Kafka, load: Load, *, failing: bool) -> tuple[list[float], list[float]]:
    """Seconds from send to arrival after the warm-up: of unmarked requests, and of marked ones."""
    mark = uuid.uuid4().hex[:8]
    requests, results, dead = f"bench-requests-{mark}", f"bench-results-{mark}", f"bench-dead-{mark}"
    for topic in (requests, results, dead, f"{requests}.retry.{load.delay_s:g}s"):
        kafka.create_topic(topic, PARTITIONS)
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": requests,
        "XNLI_TOPICS__INPUT": requests,
        "XNLI_TOPICS__OUTPUT": results,
        "XNLI_TOPICS__DEAD_LETTER": dead,
        "XNLI_TOPICS__RETRY": f"{load.delay_s:g}",
        "XNLI_BATCH__MAX_WAIT_MS": "5",
    }
    marked = load.marked()
    texts = [f"flaky=1 {i}" if failing and is_marked else f"plain {i}" for i, is_marked in enumerate(marked)]
    with tempfile.TemporaryDirectory() as folder, WorkerProcess(environment, Path(folder) / "worker.log") as worker:
        wait_until(lambda: any(e["held"] == 2 * PARTITIONS for e in worker.events("rebalance")), 60, "start", worker)
        sent_s, arrived_s = _exchange(kafka, requests, results, texts, load)
        worker.stop()
    took_s = {i: arrived_s[i] - sent_s[i] for i in range(round(load.rate * WARM_UP_S), len(texts))}
    return (
        [seconds for i, seconds in took_s.items() if not marked[i]],
        [seconds for i, seconds in took_s.items() if marked[i]],
    )


def _exchange(
    kafka: Kafka, requests: str, results: str, texts: list[str], load: Load
) -> tuple[list[float], dict[int, float]]:
    """Send at the rate, listen in between: when each request was sent, and when its result arrived."""
    client = {"bootstrap.servers": kafka.bootstrap_servers}
    producer = Producer({**client, "linger.ms": 0})
    consumer = Consumer({**client, "group.id": results, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(results, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    sent_s: list[float] = []
    arrived_s: dict[int, float] = {}

    def listen(until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0 and len(arrived_s) < len(texts):
            message = consumer.poll(left_s)
            if message is not None and message.error() is None:
                arrived_s.setdefault(int(message.key() or b"-1"), time.monotonic())

    try:
        began_s = time.monotonic()
        for i, text in enumerate(texts):
            listen(began_s + i / load.rate)
            sent_s.append(time.monotonic())
            producer.produce(requests, request(str(i), text), str(i))
            producer.poll(0)
        producer.flush(10)
        listen(time.monotonic() + load.delay_s + 60)
        if len(arrived_s) < len(texts):
            raise AssertionError(f"{len(texts) - len(arrived_s)} of {len(texts)} requests have no result")
    finally:
        consumer.close()
    return sent_s, arrived_s


def _percentiles_ms(seconds: list[float]) -> tuple[float, float]:
    """The 50th and the 99th, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return cuts[49] * 1000, cuts[98] * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--delay", type=float, default=3)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    load = Load(arguments.rate, arguments.seconds, arguments.share, arguments.delay)
    given = os.environ.get("XNLI_TEST_KAFKA")
    cluster = None if given else KafkaCluster()
    if cluster is not None:
        cluster.start()
    kafka = cluster or Kafka(str(given))
    found: dict[str, list[tuple[float, float]]] = {"nobody waits": [], "some wait": [], "those that wait": []}
    try:
        for run in range(arguments.runs):
            for failing in (False, True) if run % 2 == 0 else (True, False):
                main_s, marked_s = _run(kafka, load, failing=failing)
                found["some wait" if failing else "nobody waits"].append(_percentiles_ms(main_s))
                if failing:
                    found["those that wait"].append(_percentiles_ms(marked_s))
                p50_ms, p99_ms = _percentiles_ms(main_s)
                print(
                    f"run {run + 1}: failing {failing!s:5} p50 {p50_ms:6.1f} ms, p99 {p99_ms:6.1f} ms", file=sys.stderr
                )
    finally:
        if cluster is not None:
            cluster.stop()
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    print(f"{'':16} {'p50 ms':>8} {'p99 ms':>8}")
    for name, (p50_ms, p99_ms) in medians.items():
        print(f"{name:16} {p50_ms:8.1f} {p99_ms:8.1f}")
    print(
        json.dumps(
            {
                "rate": load.rate,
                "seconds": load.seconds,
                "share": load.share,
                "delay_s": load.delay_s,
                "runs": found,
                "medians": medians,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
