"""Latency end to end at half the saturation rate, with a model that takes a constant time per batch.

    python -m tests.bench.latency [--seconds 30] [--batch-ms 100] [--max-messages 64] [--max-wait-ms 50] [--load 0.5]

First the saturation rate: a backlog, and the time its results take. Then requests arrive at half that rate as a Poisson
process (exponential gaps, seeded), one record each, sent at once. A latency is what a user of the results sees: from
the request's own timestamp until a ``read_committed`` reader holds the result, so under exactly_once the transaction's
commit is part of it. Both clocks are this machine's. The promise: the 99th percentile is at most
``max_wait + 2 * batch``. The exit code is 1 if it is broken.

The columns from ``waited`` on are medians of the worker's own canonical log lines: where a batch's time goes, from its
first message's admission to the device, on the device, until the results are taken back, and until they are committed.
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
GUARANTEES = ("exactly_once", "at_least_once")
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


def _environment(
    kafka: Kafka, source: str, target: str, guarantee: str, arguments: argparse.Namespace
) -> dict[str, str]:
    return {
        "XNLI_LOG__LEVEL": "debug",  # a line for each batch
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": new_topic(kafka, "dead"),
        "XNLI_DELIVERY__GUARANTEE": guarantee,
        "XNLI_BATCH__MAX_MESSAGES": str(arguments.max_messages),
        "XNLI_BATCH__MAX_WAIT_MS": str(arguments.max_wait_ms),
        "XNLI_TEST_SECONDS_PER_BATCH": str(arguments.batch_ms / 1000),
    }


def saturation(kafka: Kafka, guarantee: str, arguments: argparse.Namespace) -> float:
    """Results a second while there is always a backlog."""
    source, target = new_topic(kafka, "requests", PARTITIONS), new_topic(kafka, "results", PARTITIONS)
    messages = int(10 * arguments.max_messages / (arguments.batch_ms / 1000))
    send(kafka.bootstrap_servers, source, ((f"k{i}", _request(f"k{i}")) for i in range(messages)))
    environment = _environment(kafka, source, target, guarantee, arguments)
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


def latency(kafka: Kafka, guarantee: str, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Percentiles in milliseconds of requests that arrive at ``rate``, and the worker's own account of them."""
    source, target = new_topic(kafka, "requests", PARTITIONS), new_topic(kafka, "results", PARTITIONS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = _environment(kafka, source, target, guarantee, arguments)
        worker = stack.enter_context(WorkerProcess(environment, folder / "worker.log"))
        worker.wait_for("rebalance")
        reader = Reader(kafka, target)
        stack.callback(reader.close)
        sent = arrivals(kafka, source, rate, WARM_UP_S + arguments.seconds, random.Random(arguments.seed))
        wait_until(lambda: len(reader.seen) >= sent, 60, "every result", worker)
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
        "batch": statistics.fmean(line["messages"] for line in batches),
        **{
            name: statistics.median(line[f"{name}_ms"] for line in batches)
            for name in ("waited", "inference", "queued", "publish")
        },
    }


def main() -> int:
    """Print the percentiles as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batch-ms", type=float, default=100.0)
    parser.add_argument("--max-messages", type=int, default=64)
    parser.add_argument("--max-wait-ms", type=int, default=50)
    parser.add_argument("--load", type=float, default=0.5, help="share of the saturation rate")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guarantee", choices=GUARANTEES)
    arguments = parser.parse_args()
    limit_ms = arguments.max_wait_ms + 2 * arguments.batch_ms
    report: dict[str, Any] = {"limit_ms": limit_ms, "options": vars(arguments)}
    names = ("p50", "p99", "p99.9", "max", "batch", "waited", "inference", "queued", "publish")
    kept = True
    with broker() as kafka:
        guarantees = [arguments.guarantee] if arguments.guarantee else list(GUARANTEES)
        full = {guarantee: saturation(kafka, guarantee, arguments) for guarantee in guarantees}
        runs: dict[str, list[dict[str, Any]]] = {guarantee: [] for guarantee in guarantees}
        for run in range(arguments.runs):
            for guarantee in guarantees if run % 2 == 0 else reversed(guarantees):
                runs[guarantee].append(latency(kafka, guarantee, full[guarantee] * arguments.load, arguments))
                print(f"run {run + 1}: {guarantee:14} p99 {runs[guarantee][-1]['p99']:6.1f} ms", file=sys.stderr)
    print(f"milliseconds; p99 may be {limit_ms:g}")
    print(f"{'':14} {'requests/s':>10} " + " ".join(f"{name:>9}" for name in names))
    for guarantee in guarantees:
        medians = {name: statistics.median(run[name] for run in runs[guarantee]) for name in names}
        rate = full[guarantee] * arguments.load
        print(f"{guarantee:14} {rate:10.0f} " + " ".join(f"{medians[name]:9.1f}" for name in names))
        kept &= medians["p99"] <= limit_ms
        report[guarantee] = {"saturation": full[guarantee], "medians": medians, "runs": runs[guarantee]}
    print(json.dumps(report | {"machine": machine()}))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
