"""Resident memory over time: the real worker, the demo checkpoint, exactly_once, real Kafka, and all kinds of messages.

    python -m tests.bench.soak [--minutes 30] [--rate 100] [--seed 1] [--plot FILE.png]
    python -m tests.bench.soak --flood [--minutes 5]

The growth is the mean of the last fifth of the time against the first, after a warm-up of a tenth. What the worker
keeps by design (remembered hypotheses, librdkafka's queues, the allocator's free lists) is full by then: every request
brings a label that no other has, so 10,000 hypotheses pass by within minutes. The exit code is 1 if the growth is 2% or
more, if a message is unaccounted for, or if the worker ended or was evicted.

``--flood``: a producer ten times faster than the model, which only waits, and a poll interval of a few seconds. Memory
has to stay flat all the same, and the group must not notice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.broker import broker, machine, new_topic
from tests.brokers.kafka import Kafka
from tests.faults.verifier import group_lag
from tests.faults.workers import REAL, SCRIPTED, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.demo.play import CHECKPOINT, SAMPLES

GROWTH_LIMIT = 0.02
# Logs are cut by size and time, and looked at often enough that half an hour of messages never lies on the disk.
RETENTION = {"retention.ms": "120000", "segment.bytes": "8388608"}
BROKER = {"log.retention.check.interval.ms": "10000"}
# A flood is kept: what the worker has not read yet must not be deleted under it.
FLOOD_RATE, FLOOD_BATCH_S = 5_000.0, 0.512
FLOOD = {
    "XNLI_TEST_SECONDS_PER_BATCH": str(FLOOD_BATCH_S),
    "XNLI_KAFKA__CONSUMER_PROPERTIES": (
        '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "max.poll.interval.ms": 6000}'
    ),
}


class Traffic:
    """Seeded messages of every kind: three tasks, fifteen languages, short and very long texts, garbage, tombstones."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._codecs = Codecs()
        samples = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
        self._texts = [sample["text"] for sample in samples]
        self._labels = sorted({label for sample in samples for label in sample.get("labels", ())})
        self.count = 0

    def next(self) -> tuple[str, bytes | None]:
        """A key and a value."""
        self.count += 1
        draw, key = self._draw, f"k{self.count}"
        kind = draw.choices(("classify", "entail", "embed", "garbage", "tombstone"), (75, 10, 10, 4, 1))[0]
        match kind:
            case "tombstone":
                return key, None
            case "garbage":
                return key, self._garbage(key)
            case "embed":
                return key, self._request(id=key, task="EMBED", text=self._text())
            case "entail":
                hypotheses = [f"{self._draw.choice(self._texts)} {key}", self._draw.choice(self._texts)]
                return key, self._request(id=key, task="ENTAIL", text=self._text(), hypotheses=hypotheses)
            case _:
                labels = [*draw.sample(self._labels, min(12, 1 + int(draw.expovariate(0.4)))), f"label {key}"]
                long_text = draw.choice((None, "TRUNCATE", "WINDOW_MAX", "WINDOW_MEAN"))
                multi = draw.random() < 0.3
                text = self._text()
                return key, self._request(id=key, text=text, labels=labels, long_text=long_text, multi_label=multi)

    def _request(self, **fields: Any) -> bytes:
        return self._codecs.encode_request(json_request.request(fields))[0]

    def _text(self) -> str:
        """One sentence as a rule, at times a hundred."""
        sentences = min(100, max(1, int(self._draw.lognormvariate(0.0, 1.0))))
        return " ".join(self._draw.choices(self._texts, k=sentences))

    def _garbage(self, key: str) -> bytes:
        good = self._request(id=key, text=self._text(), labels=["a", "b"])
        match self._draw.randrange(4):
            case 0:
                return bytes([0x17]) + self._draw.randbytes(self._draw.randrange(5_000))
            case 1:
                return good[: self._draw.randrange(10, len(good))]
            case 2:
                return b"\x00" + self._draw.randbytes(4) + good[10:]
            case _:
                return self._request(id=key, text="x" * 200_000, labels=["a"])  # longer than limits.max_text_chars


class Plain:
    """One small request under ever new keys: nothing but the rate matters."""

    def __init__(self) -> None:
        self._value = Codecs().encode_request(
            json_request.request({"id": "plain", "text": "plain", "labels": ["a", "b"]})
        )[0]
        self.count = 0

    def next(self) -> tuple[str, bytes | None]:
        """A key and a value."""
        self.count += 1
        return f"k{self.count}", self._value


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment: seconds since the start, resident memory, and CPU time used so far."""

    at_s: float
    resident_bytes: int
    anonymous_bytes: int
    cpu_s: float


def sample(pid: int, at_s: float) -> Sample:
    """Read /proc (proc_pid_status(5), proc_pid_stat(5))."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    kib = {name: int(status[name].split()[0]) for name in ("VmRSS", "RssAnon")}
    # The name of the process is in brackets and may contain anything; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Sample(at_s, kib["VmRSS"] * 1024, kib["RssAnon"] * 1024, ticks / os.sysconf("SC_CLK_TCK"))


def growth(samples: Sequence[Sample], warm_up_s: float) -> tuple[float, float, float]:
    """Mean resident bytes of the first and of the last fifth after the warm-up, and the growth between them."""
    warm = [s for s in samples if s.at_s >= warm_up_s]
    fifth = max(1, len(warm) // 5)
    first = statistics.fmean(s.resident_bytes for s in warm[:fifth])
    last = statistics.fmean(s.resident_bytes for s in warm[-fifth:])
    return first, last, last / first - 1


def drive(kafka: Kafka, topic: str, traffic: Traffic | Plain, rate: float, seconds: float, pid: int) -> list[Sample]:
    """Send at an even rate; look at the process every second. Fails unless every record was acknowledged."""
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "partitioner": "murmur2_random",
        }
    )
    samples: list[Sample] = []
    sent, began_s = 0, time.monotonic()
    while (at_s := time.monotonic() - began_s) < seconds:
        while sent < at_s * rate:
            key, value = traffic.next()
            producer.produce(topic, value, key, on_delivery=lambda e, _: failed.append(e.str()) if e else None)
            sent += 1
            if sent % 100 == 0:
                producer.poll(0)
        producer.poll(0)
        if at_s >= len(samples):
            samples.append(sample(pid, at_s))
        if len(samples) % 60 == 1 and len(samples) > 1 and samples[-1].at_s == at_s:
            print(f"{at_s / 60:5.1f} min  {samples[-1].resident_bytes / 2**20:7.1f} MiB  {sent} sent", file=sys.stderr)
        time.sleep(0.005)
    if left := producer.flush(60):
        failed.append(f"{left} not acknowledged")
    if failed:
        raise SystemExit(f"the broker did not take every request: {failed[:1]}")
    return samples


def metrics(worker: WorkerProcess) -> Counter[str]:
    """The worker's own counts, summed over labels."""
    port = worker.events("started")[-1]["http_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:  # loopback, our own worker
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for point in family.samples:
            if point.name.endswith("_total"):
                found[point.name.removeprefix("xnli_worker_")] += int(point.value)
    return found


def soak(kafka: Kafka, arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Run one worker under load; what was found, and every sample."""
    config = {} if arguments.flood else RETENTION
    source, target, dead = (new_topic(kafka, hint, 4, config) for hint in ("requests", "results", "dead"))
    environment = {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": dead,
        "XNLI_MODEL__DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    environment |= FLOOD if arguments.flood else {"XNLI_MODEL__NAME": str(CHECKPOINT)}
    traffic = Plain() if arguments.flood else Traffic(arguments.seed)
    rate = FLOOD_RATE if arguments.flood else arguments.rate
    module = SCRIPTED if arguments.flood else REAL
    with WorkerProcess(environment, folder / "worker.log", module) as worker:
        worker.wait_for("rebalance", 120)
        samples = drive(kafka, source, traffic, rate, 60 * arguments.minutes, worker.process.pid)
        ended = worker.process.poll()
        if ended is not None:
            raise SystemExit(f"the worker ended with {ended}:\n{worker.log_path.read_text()[-3000:]}")
        lag = group_lag(kafka.bootstrap_servers, source, source)
        if not arguments.flood:  # a flood would take nine times as long again
            wait_until(lambda: not group_lag(kafka.bootstrap_servers, source, source), 120, "the rest", worker)
        found = metrics(worker)
        worker.stop()
    first, last, grown = growth(samples, 6 * arguments.minutes)
    answered = found["records_published_total"] + found["records_dead_lettered_total"] + found["tombstones_total"]
    report = {
        "minutes": arguments.minutes,
        "rate": rate,
        "sent": traffic.count,
        "read": found["records_consumed_total"],
        "lag at the end": lag,
        "results": found["records_published_total"],
        "dead letters": found["records_dead_lettered_total"],
        "tombstones": found["tombstones_total"],
        "unaccounted": 0 if arguments.flood else traffic.count - answered,
        "rebalances": found["rebalances_total"],
        "first fifth MiB": round(first / 2**20, 1),
        "last fifth MiB": round(last / 2**20, 1),
        "most MiB": round(max(s.resident_bytes for s in samples) / 2**20, 1),
        "growth %": round(100 * grown, 2),
        "CPU %": round(100 * (samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].at_s - samples[0].at_s), 1),
    }
    return report, samples


def plot(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Resident memory over minutes, from zero: a slope that matters is one that shows."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is set)

    figure, axes = plt.subplots(figsize=(9, 4))
    minutes = [s.at_s / 60 for s in samples]
    axes.plot(minutes, [s.resident_bytes / 2**20 for s in samples], label="resident")
    axes.plot(minutes, [s.anonymous_bytes / 2**20 for s in samples], label="of it anonymous")
    axes.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title=title)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Print what was found as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flood", action="store_true", help="ten times what the model can do, which only waits")
    parser.add_argument("--plot", type=Path, help="write a chart (needs matplotlib)")
    arguments = parser.parse_args()
    with broker(BROKER) as kafka, tempfile.TemporaryDirectory() as folder:
        report, samples = soak(kafka, arguments, Path(folder))
    for name, value in report.items():
        print(f"{name:16} {value:>10}")
    every_ten = [round(s.resident_bytes / 2**20, 1) for s in samples[::10]]
    print(json.dumps(report | {"seed": arguments.seed, "MiB every 10 s": every_ten, "machine": machine()}))
    if arguments.plot:
        plot(samples, arguments.plot, f"{report['rate']:g} messages/s, growth {report['growth %']} %")
    flat = report["growth %"] < 100 * GROWTH_LIMIT
    return 0 if flat and not report["unaccounted"] and report["rebalances"] == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
