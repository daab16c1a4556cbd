"""What delivery costs: the worker with a model that answers at once, against a bare loop over the same records.

    python -m tests.bench.delivery [--messages 100000] [--runs 5]

The peer is the least a Python program can do: consume with confluent-kafka, decode and encode with fastavro, produce.
It commits nothing, keeps no order, validates nothing and batches nothing. Both run as processes on real Kafka, one
after the other, in alternating order, over the same topic of requests. A rate is the results' own timestamps: last
minus first. Beside it the CPU time a message takes in the process, start-up left out, which a busy machine distorts
less. Medians; needs Java and Maven, or ``XNLI_TEST_KAFKA=host:port``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.faults.verifier import count, read_all, send
from tests.faults.workers import ROOT, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import REQUEST
from worker.avro.schema_walk import schema
from worker.avro.writing import Writer

_BARE = """
import io, sys, time
import fastavro
from confluent_kafka import Consumer, Producer
from worker.avro.codec import Codecs, REQUEST, RESULT, schema_folder
bootstrap, source, target, total = sys.argv[1:4] + [int(sys.argv[4])]
request = fastavro.schema.load_schema(schema_folder() / REQUEST)
result = fastavro.schema.load_schema(schema_folder() / RESULT)
consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": target, "auto.offset.reset": "earliest",
                     "enable.auto.commit": False, "isolation.level": "read_committed"})
producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5,
                     "compression.type": "lz4", "partitioner": "murmur2_random"})
consumer.subscribe([source])
seen, began = 0, None
while seen < total:
    for message in consumer.consume(256, 0.1):
        asked = fastavro.schemaless_reader(io.BytesIO(message.value()[10:]), request)
        answer = {"id": asked["id"], "task": asked["task"], "attributes": asked["attributes"],
                  "outcome": ("xnli.Classification", {"labels": [
                      {"label": label, "score": 0.5, "entailment": 0.5, "neutral": 0.0, "contradiction": 0.5}
                      for label in asked["labels"]], "multi_label": True, "abstained": False}),
                  "model": {"name": "none", "revision": "0"}, "truncated": False, "windows": 1,
                  "source": {"topic": message.topic(), "partition": message.partition(), "offset": message.offset(),
                             "timestamp": message.timestamp()[1]}}
        out = io.BytesIO()
        fastavro.schemaless_writer(out, result, answer)
        producer.produce(target, out.getvalue(), message.key())
        producer.poll(0)
        seen += 1
    if began is None and seen:
        began = seen, time.process_time()
producer.flush()
print((time.process_time() - began[1]) / (seen - began[0]) * 1e6)
"""


def _rate(kafka: Kafka, topic: str) -> float:
    stamps = [message.timestamp()[1] for message in read_all(kafka.bootstrap_servers, topic)]
    return len(stamps) / max(1e-3, (max(stamps) - min(stamps)) / 1000)


@dataclass(frozen=True, slots=True)
class Run:
    """Messages a second, and microseconds of CPU time a message."""

    rate: float
    cpu_us: float


def _bare(kafka: Kafka, source: str, messages: int) -> Run:
    target = _topic(kafka, "bare")
    command = [sys.executable, "-c", _BARE, kafka.bootstrap_servers, source, target, str(messages)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return Run(_rate(kafka, target), float(done.stdout))


def worker_run(kafka: Kafka, source: str, messages: int, guarantee: str, *, checkout: Path = ROOT) -> Run:
    """One worker answers all requests of a topic. ``checkout`` is where its code lies."""
    target = _topic(kafka, guarantee)
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": target,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": _topic(kafka, "dead"),
        "XNLI_DELIVERY__GUARANTEE": guarantee,
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkerProcess(environment, Path(folder) / "worker.log", checkout=checkout) as worker,
    ):
        wait_until(lambda: count(kafka.bootstrap_servers, target) > 0, 60, "a first result", worker)
        before, began_s = count(kafka.bootstrap_servers, target), _cpu_s(worker.process.pid)
        # Seldom: to ask is to connect, and the peer runs undisturbed.
        wait_until(lambda: count(kafka.bootstrap_servers, target) >= messages, 300, "all results", worker, every_s=1.0)
        spent_s = _cpu_s(worker.process.pid) - began_s
        worker.stop()
    return Run(_rate(kafka, target), spent_s / (messages - before) * 1e6)


def _cpu_s(pid: int) -> float:
    """CPU time of a process so far, as Linux counts it (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _topic(kafka: Kafka, hint: str) -> str:
    name = f"bench-{hint}-{uuid.uuid4().hex[:8]}"
    kafka.create_topic(name, 4)
    return name


def requests_topic(kafka: Kafka, messages: int, *, checkout: Path = ROOT) -> str:
    """A topic with so many requests, as a producer writes them that was built with the schema of a checkout."""
    source = _topic(kafka, "requests")
    written = schema((checkout / "schemas" / REQUEST).read_text(encoding="utf-8"), reader=True)
    writer = Writer(written.parsed)
    framing = b"\xc3\x01" + bytes.fromhex(written.fingerprint)  # Avro's single-object encoding

    def value(number: int) -> bytes:
        asked = {"id": f"k{number}", "text": f"plain {number} " + "word " * 30, "labels": ["a", "b"]}
        return framing + writer.to_bytes(json_request.request(asked))

    send(kafka.bootstrap_servers, source, ((f"k{number}", value(number)) for number in range(messages)))
    return source


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    given = os.environ.get("XNLI_TEST_KAFKA")
    cluster = None if given else KafkaCluster()
    if cluster is not None:
        cluster.start()
    kafka = cluster or Kafka(str(given))
    try:
        source = requests_topic(kafka, arguments.messages)
        runs: dict[str, list[Run]] = {"bare loop": [], "at_least_once": [], "exactly_once": []}
        for number in range(arguments.runs):
            for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
                bare = name == "bare loop"
                run = (
                    _bare(kafka, source, arguments.messages)
                    if bare
                    else worker_run(kafka, source, arguments.messages, name)
                )
                runs[name].append(run)
                print(f"run {number + 1}: {name:14} {run.rate:9.0f} /s {run.cpu_us:6.1f} us", file=sys.stderr)
    finally:
        if cluster is not None:
            cluster.stop()
    medians = {name: statistics.median(run.rate for run in found) for name, found in runs.items()}
    cpu_us = {name: statistics.median(run.cpu_us for run in found) for name, found in runs.items()}
    print(f"{'':14} {'messages/s':>10} {'of bare':>8} {'CPU us/message':>15}")
    for name, median in medians.items():
        print(f"{name:14} {median:10.0f} {median / medians['bare loop']:8.2f} {cpu_us[name]:15.1f}")
    print(f"exactly_once / at_least_once: {medians['exactly_once'] / medians['at_least_once']:.2f}")
    print(
        json.dumps(
            {
                "messages": arguments.messages,
                "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
                "medians": medians,
                "cpu_us": cpu_us,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
