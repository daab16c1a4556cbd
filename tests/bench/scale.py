"""What a second worker brings, with a model that only waits: delivery must not be what limits.

    python -m tests.bench.scale [--messages 30000] [--runs 3]

The model sleeps for a fifth of a second per batch, as if a device computed, so the machine's cores are hardly used and
one or two workers of one group are compared on real Kafka, in alternating order, over the same topic of requests. The
group forms on an idle topic; only then the messages come. A rate is the results' own timestamps: last minus first.
Medians; the exit code is 1 below 1.9 times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench.broker import broker, machine, new_topic
from tests.brokers.kafka import Kafka
from tests.faults.verifier import count, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

PARTITIONS = 8
BATCH, BATCH_S = 256, 0.2
LEAST = 1.9


def rate(kafka: Kafka, workers: int, messages: int, guarantee: str) -> float:
    """Results a second of a group of so many workers."""
    source, target = new_topic(kafka, "requests", PARTITIONS), new_topic(kafka, f"results-{workers}", PARTITIONS)
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": new_topic(kafka, "dead"),
        "XNLI_DELIVERY__GUARANTEE": guarantee,
        "XNLI_BATCH__MAX_MESSAGES": str(BATCH),
        "XNLI_TEST_SECONDS_PER_BATCH": str(BATCH_S),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group = [stack.enter_context(WorkerProcess(environment, folder / f"{i}.log")) for i in range(workers)]
        wait_until(lambda: all(_held(member) == PARTITIONS // workers for member in group), 60, "the group", group[0])
        send(
            kafka.bootstrap_servers,
            source,
            ((f"k{i}", request(f"k{i}", f"plain {i} " + "word " * 30)) for i in range(messages)),
        )
        wait_until(lambda: count(kafka.bootstrap_servers, target) >= messages, 600, "results", group[0])
        wait_until(lambda: not group_lag(kafka.bootstrap_servers, source, source), 60, "the last commit", group[0])
        for member in group:
            member.stop()
    stamps = [message.timestamp()[1] for message in read_all(kafka.bootstrap_servers, target)]
    if len(stamps) != messages:
        raise SystemExit(f"{len(stamps)} results for {messages} requests")
    return len(stamps) / ((max(stamps) - min(stamps)) / 1000)


def _held(worker: WorkerProcess) -> int:
    """Partitions held after the last rebalance."""
    rebalances = worker.events("rebalance")
    return int(rebalances[-1]["held"]) if rebalances else 0


def main() -> int:
    """Print the rates as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--guarantee", choices=("exactly_once", "at_least_once"), default="exactly_once")
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    with broker() as kafka:
        for run in range(arguments.runs):
            for workers in (1, 2) if run % 2 == 0 else (2, 1):
                rates[workers].append(rate(kafka, workers, arguments.messages, arguments.guarantee))
                print(f"run {run + 1}: {workers} workers {rates[workers][-1]:7.0f} messages/s", file=sys.stderr)
    medians = {workers: statistics.median(values) for workers, values in rates.items()}
    times = medians[2] / medians[1]
    print(f"{'workers':>8} {'messages/s':>11} {'times':>6}")
    for workers, median in medians.items():
        print(f"{workers:8} {median:11.0f} {median / medians[1]:6.2f}")
    print(
        json.dumps(
            {
                "guarantee": arguments.guarantee,
                "messages": arguments.messages,
                "batch": BATCH,
                "batch_s": BATCH_S,
                "model alone": BATCH / BATCH_S,
                "runs": rates,
                "medians": medians,
                "times": times,
                "machine": machine(),
            }
        )
    )
    return 0 if times >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
