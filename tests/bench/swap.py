"""Latency while the model is swapped, beside the usual one: the shipped checkpoint, half saturation, real Kafka.

    python -m tests.bench.swap [--seconds 60] [--swaps 10] [--guarantee exactly_once]

First the saturation rate: a backlog, and the time its results take. Then requests arrive at half that rate as a Poisson
process, for so many seconds without a swap and as many with one every few seconds. A latency is what a reader of the
results sees, from the request's own timestamp on. One counts as met by a swap if it was under way at any moment between
SIGHUP and the first batch of the newcomer. The promise: the 99th percentile of those is at most twice the usual one.
The exit code is 1 if it is broken. Resident memory is that before the first swap and that after the last, both once the
worker has given back what is free.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.bench.broker import broker, machine, new_topic
from tests.bench.latency import CODECS, PARTITIONS, WARM_UP_S, Reader
from tests.brokers.kafka import Kafka
from tests.families.revisions import Link, revision
from tests.faults.verifier import count, read_all, send
from tests.faults.workers import REAL, WorkerProcess, wait_until
from worker.avro import json_request
from worker.demo.play import SAMPLES
from worker.process import TRIM_INTERVAL_S

LIMIT = 2.0
BACKLOG = 1_500


class Texts:
    """Requests of the demo's texts against three labels."""

    def __init__(self) -> None:
        self._texts = [json.loads(line)["text"] for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
        self.count = 0

    def next(self) -> tuple[str, bytes]:
        """A key and a value that says when it was made."""
        key = f"k{self.count}"
        text = f"{self._texts[self.count % len(self._texts)]} {key}"
        self.count += 1
        fields = {"id": key, "text": text, "labels": ["economy", "sport", "cooking"]}
        asked = json_request.request(fields | {"attributes": {"sent": repr(time.time())}})
        return key, CODECS.encode_request(asked)[0]


def _arrive(kafka: Kafka, topic: str, rate: float, seconds: float, draw: random.Random, texts: Texts) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 0, "partitioner": "murmur2_random"})
    began_s = time.perf_counter()
    due_s = draw.expovariate(rate)
    while due_s < seconds:
        while (left_s := due_s - (time.perf_counter() - began_s)) > 0:
            time.sleep(left_s)
        key, value = texts.next()
        producer.produce(topic, value, key)
        producer.poll(0)
        due_s += draw.expovariate(rate)
    producer.flush(30)


class Bench:
    """A worker behind a link, and a reader of its results."""

    def __init__(self, kafka: Kafka, folder: Path, guarantee: str, stack: ExitStack) -> None:
        self._kafka = kafka
        self._revisions = revision(folder / "one", 1.0), revision(folder / "two", 0.8)
        self._link = Link(folder / "current", self._revisions[0])
        self._swaps = 0
        self.source, self.target = (new_topic(kafka, hint, PARTITIONS) for hint in ("requests", "results"))
        environment = {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": self.source,
            "XNLI_TOPICS__INPUT": self.source,
            "XNLI_TOPICS__OUTPUT": self.target,
            "XNLI_TOPICS__DEAD_LETTER": new_topic(kafka, "dead"),
            "XNLI_DELIVERY__GUARANTEE": guarantee,
            "XNLI_MODEL__NAME": str(self._link.path),
            "XNLI_MODEL__RELOAD": "signal",
        }
        self.worker = stack.enter_context(WorkerProcess(environment, folder / "worker.log", REAL))
        self.worker.wait_for("rebalance")
        self.texts = Texts()

    def saturation(self) -> float:
        """Results a second while there is always a backlog."""
        send(self._kafka.bootstrap_servers, self.source, (self.texts.next() for _ in range(BACKLOG)))
        wait_until(lambda: count(self._kafka.bootstrap_servers, self.target) >= BACKLOG, 300, "results", self.worker)
        stamps = [message.timestamp()[1] for message in read_all(self._kafka.bootstrap_servers, self.target)]
        return len(stamps) / ((max(stamps) - min(stamps)) / 1000)

    def swap(self) -> None:
        """Ask for the other revision, and wait until it serves."""
        before = len(self.worker.events("model_swapped"))
        self._swaps += 1
        self._link.to(self._revisions[self._swaps % 2])
        self.worker.signal(signal.SIGHUP)
        wait_until(lambda: len(self.worker.events("model_swapped")) > before, 60, "a swap", self.worker)

    def windows(self) -> Iterator[tuple[float, float]]:
        """From when to when each swap was under way, by the wall clock."""
        for began, ended in zip(self.worker.events("model_reload"), self.worker.events("model_swapped"), strict=True):
            yield _wall_s(began["timestamp"]), _wall_s(ended["timestamp"])

    def resident_mb(self) -> float:
        """Once the worker has given back what is free."""
        time.sleep(TRIM_INTERVAL_S + 2)
        port = self.worker.events("started")[-1]["http_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        (found,) = (line for line in lines if line.startswith("xnli_worker_process_resident_memory_bytes"))
        return float(found.split()[1]) / 1e6


def _wall_s(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _p99(latencies_ms: list[float]) -> float:
    return statistics.quantiles(latencies_ms, n=100)[98]


def main() -> int:
    """Print both percentiles, memory, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--guarantee", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with broker() as kafka, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(kafka, folder, arguments.guarantee, stack)
        rate = bench.saturation() / 2
        reader = Reader(kafka, bench.target)
        stack.callback(reader.close)
        wait_until(lambda: len(reader.seen) >= BACKLOG, 60, "the backlog to be read")
        _arrive(kafka, bench.source, rate, WARM_UP_S, draw, bench.texts)
        usual_from = len(reader.seen)
        _arrive(kafka, bench.source, rate, arguments.seconds, draw, bench.texts)
        wait_until(lambda: len(reader.seen) >= bench.texts.count, 60, "every result")
        usual = [ms for _, ms in reader.seen[usual_from:]]
        before_mb = bench.resident_mb()
        swapped_from = len(reader.seen)
        load = threading.Thread(
            target=_arrive, args=(kafka, bench.source, rate, arguments.seconds, draw, bench.texts), daemon=True
        )
        load.start()
        for _ in range(arguments.swaps):
            time.sleep(arguments.seconds / arguments.swaps / 2)
            bench.swap()
        load.join()
        wait_until(lambda: len(reader.seen) >= bench.texts.count, 60, "every result")
        windows = list(bench.windows())
        met = [
            ms
            for at_s, ms in reader.seen[swapped_from:]
            if any(at_s - ms / 1000 <= ended_s and at_s >= began_s for began_s, ended_s in windows)
        ]
        after_mb = bench.resident_mb()
        bench.worker.stop()
    report: dict[str, Any] = {
        "requests_per_s": rate,
        "usual": {"p50": statistics.median(usual), "p99": _p99(usual), "requests": len(usual)},
        "swap": {"p50": statistics.median(met), "p99": _p99(met), "requests": len(met)},
        "swap_s": statistics.fmean(ended_s - began_s for began_s, ended_s in windows),
        "resident_mb": {"before": before_mb, "after": after_mb},
        "machine": machine(),
    }
    print(f"{rate:.0f} requests a second, half saturation; milliseconds")
    for name in ("usual", "swap"):
        print(f"{name:6} p50 {report[name]['p50']:7.1f}  p99 {report[name]['p99']:7.1f}  of {report[name]['requests']}")
    print(f"a swap takes {report['swap_s']:.1f} s; resident {before_mb:.0f} MB, then {after_mb:.0f} MB")
    print(json.dumps(report))
    return 0 if _p99(met) <= LIMIT * _p99(usual) else 1


if __name__ == "__main__":
    sys.exit(main())
