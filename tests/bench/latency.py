"""Latency end to end under three loads, by when an idle device takes a batch: at once, or when it has waited for more.

    python -m tests.bench.latency [--seconds 20] [--batch-ms 100] [--fixed-ms 10] [--max-messages 64] [--max-wait-ms 50]
        [--load 0.1 --load 0.5 --load 0.9] [--runs 3]

The model takes ``fixed-ms`` for each batch and a share for each message, ``batch-ms`` for a full batch: so do devices.
First the saturation rate of each policy: a backlog, and the time its results take. Then requests arrive at shares of
that rate as a Poisson process (exponential gaps, seeded), one record each, sent at once. A latency is what a user of
the results sees: from the request's own timestamp until a ``read_committed`` reader holds the result, so under
exactly_once the transaction's commit is part of it. Both clocks are this machine's. Runs of the policies alternate. The
promise: at half load the 99th percentile is at most ``max_wait + 2 * batch``. The exit code is 1 if it is broken.

``waited``, ``inference``, ``queued`` and ``publish`` are medians of the worker's own log lines: where a batch's
time goes, from its first message's admission to the device, on the device, until the results are taken back, and until
they are committed. ``fill`` is the mean of messages in a batch, ``commits`` transactions a second.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.bench.broker import broker, machine, new_topic
from tests.brokers.kafka import Kafka
from tests.faults.verifier import count, read_all, send
from tests.faults.workers import WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs

PARTITIONS = 4
CODECS = Codecs()
POLICIES = ("waits", "at once")
NAMES = ("p50", "p99", "p99.9", "max", "fill", "commits", "waited", "inference", "queued", "publish")
WARM_UP_S = 3.0


class Reader:
    """Reads results as they become visible, on a thread; latencies in milliseconds by time of arrival."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": f"reader-{topic}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        self._stopping = threading.Event()
        self.seen: list[tuple[float, float]] = []  # wall-clock seconds of arrival, latency in milliseconds
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            now_s = time.time()
            result = CODECS.read_result(message.value() or b"", ())
            # Sub-millisecond: the sender writes its own clock into the request's attributes.
            self.seen.append((now_s, 1000 * (now_s - float(result["attributes"]["sent"]))))

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()


def _request(key: str) -> bytes:
    fields = {"id": key, "text": "plain", "labels": ["a", "b"], "attributes": {"sent": repr(time.time())}}
    return CODECS.encode_request(json_request.request(fields))[0]


def _environment(kafka: Kafka, source: str, target: str, policy: str, arguments: argparse.Namespace) -> dict[str, str]:
    return {
        "XNLI_LOG__LEVEL": "debug",  # a line for each batch
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": new_topic(kafka, "dead"),
        "XNLI_DELIVERY__GUARANTEE": arguments.guarantee,
        "XNLI_BATCH__MAX_MESSAGES": str(arguments.max_messages),
        "XNLI_BATCH__MAX_WAIT_MS": str(arguments.max_wait_ms if policy == "waits" else 0),
        "XNLI_TEST_SECONDS_PER_BATCH": str(arguments.fixed_ms / 1000),
        "XNLI_TEST_SECONDS_PER_MESSAGE": str((arguments.batch_ms - arguments.fixed_ms) / 1000 / arguments.max_messages),
    }


def saturation(kafka: Kafka, policy: str, arguments: argparse.Namespace) -> float:
    """Results a second while there is always a backlog."""
    source, target = new_topic(kafka, "requests", PARTITIONS), new_topic(kafka, "results", PARTITIONS)
    messages = int(10 * arguments.max_messages / (arguments.batch_ms / 1000))
    send(kafka.bootstrap_servers, source, ((f"k{i}", _request(f"k{i}")) for i in range(messages)))
    environment = _environment(kafka, source, target, policy, arguments)
    with tempfile.TemporaryDirectory() as folder, WorkerProcess(environment, Path(folder) / "worker.log") as worker:
        wait_until(lambda: count(kafka.bootstrap_servers, target) >= messages, 120, "all results", worker)
        worker.stop()
    stamps = [message.timestamp()[1] for message in read_all(kafka.bootstrap_servers, target)]
    return len(stamps) / ((max(stamps) - min(stamps)) / 1000)


def arrivals(kafka: Kafka, topic: str, rate: float, seconds: float, draw: random.Random) -> int:
    """Send requests as a Poisson process; return how many. Late ones are sent at once, so the rate is kept."""
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 0,
            "partitioner": "murmur2_random",
        }
    )
    sent, began_s = 0, time.perf_counter()
    due_s = draw.expovariate(rate)
    while due_s < seconds:
        while (left_s := due_s - (time.perf_counter() - began_s)) > 0:
            time.sleep(left_s)
        producer.produce(topic, _request(f"k{sent}"), f"k{sent}")
        producer.poll(0)
        sent += 1
        due_s += draw.expovariate(rate)
    if producer.flush(30):
        raise SystemExit("the broker did not take every request")
    return sent


def transactions(worker: WorkerProcess) -> float:
    """How many transactions a worker has ended."""
    port = worker.events("started")[-1]["http_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("xnli_worker_transactions_total{"))


def latency(kafka: Kafka, policy: str, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Percentiles in milliseconds of requests that arrive at ``rate``, and the worker's own account of them."""
    source, target = new_topic(kafka, "requests", PARTITIONS), new_topic(kafka, "results", PARTITIONS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = _environment(kafka, source, target, policy, arguments)
        worker = stack.enter_context(WorkerProcess(environment, folder / "worker.log"))
        worker.wait_for("rebalance")
        reader = Reader(kafka, target)
        stack.callback(reader.close)
        sent = arrivals(kafka, source, rate, WARM_UP_S + arguments.seconds, random.Random(arguments.seed))
        wait_until(lambda: len(reader.seen) >= sent, 60, "every result", worker)
        commits = transactions(worker)
        worker.stop()
        batches = worker.events("batch")
    began_s = min(at_s for at_s, _ in reader.seen) + WARM_UP_S
    found = sorted(ms for at_s, ms in reader.seen if at_s >= began_s)
    percentiles = statistics.quantiles(found, n=1000)
    return {
        "p50": percentiles[499],
        "p99": percentiles[989],
        "p99.9": percentiles[998],
        "max": found[-1],
        "requests": len(found),
        "commits": commits / (WARM_UP_S + arguments.seconds),
        "fill": statistics.fmean(line["messages"] for line in batches),
        **{
            name: statistics.median(line[f"{name}_ms"] for line in batches)
            for name in ("waited", "inference", "queued", "publish")
        },
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--batch-ms", type=float, default=100.0, help="of a full batch")
    parser.add_argument("--fixed-ms", type=float, default=10.0, help="of that, whatever a batch holds")
    parser.add_argument("--max-messages", type=int, default=64)
    parser.add_argument("--max-wait-ms", type=int, default=50)
    parser.add_argument("--load", type=float, action="append", help="share of the saturation rate")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guarantee", choices=("exactly_once", "at_least_once"), default="exactly_once")
    arguments = parser.parse_args()
    arguments.load = arguments.load or [0.1, 0.5, 0.9]
    return arguments


def main() -> int:
    """Print the percentiles as a table and as JSON."""
    arguments = _arguments()
    full: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    found: dict[tuple[float, str], list[dict[str, Any]]] = {
        (load, policy): [] for load in arguments.load for policy in POLICIES
    }
    with broker() as kafka:
        for run in range(arguments.runs):
            for policy in POLICIES if run % 2 == 0 else reversed(POLICIES):
                full[policy].append(saturation(kafka, policy, arguments))
                print(f"run {run + 1}: {policy:8} {full[policy][-1]:.0f} results/s at saturation", file=sys.stderr)
        rate = statistics.median(full["waits"])
        for run in range(arguments.runs):
            for load in arguments.load:
                for policy in POLICIES if run % 2 == 0 else reversed(POLICIES):
                    one = latency(kafka, policy, rate * load, arguments)
                    found[load, policy].append(one)
                    print(f"run {run + 1}: load {load:g} {policy:8} p50 {one['p50']:6.1f} ms", file=sys.stderr)
    saturated = {policy: statistics.median(rates) for policy, rates in full.items()}
    print(f"{arguments.guarantee}; milliseconds; saturation, results/s: {saturated}")
    print(f"{'load':>5} {'policy':8} " + " ".join(f"{name:>9}" for name in NAMES))
    medians = {
        cell: {name: statistics.median(run[name] for run in runs) for name in NAMES} for cell, runs in found.items()
    }
    for (load, policy), row in medians.items():
        print(f"{load:5.0%} {policy:8} " + " ".join(f"{row[name]:9.1f}" for name in NAMES))
    report = {f"{load:g} {policy}": row for (load, policy), row in medians.items()}
    options = dict(vars(arguments))
    print(json.dumps({"options": options, "saturation": full, "medians": report, "machine": machine()}))
    limit_ms = arguments.max_wait_ms + 2 * arguments.batch_ms
    return int(any(row["p99"] > limit_ms for (load, _), row in medians.items() if load <= 0.5))


if __name__ == "__main__":
    sys.exit(main())
