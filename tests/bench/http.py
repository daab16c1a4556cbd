"""What HTTP costs: an idle worker's answer beside the engine's own time, and a stream with a backlog beside HTTP load.

    python -m tests.bench.http [--seconds 10] [--runs 3] [--load 0.2]

*Idle*: one classification after the other, over HTTP and by the engine in this process, in turns. The promise: half of
them take at most 5 ms more over HTTP. *Backlog*: a worker on real Kafka with more requests than it can answer, in turns
without HTTP and with requests of the same kind as a Poisson process, at ``--load`` of the rate at which the stream is
answered. The promises: of the requests over HTTP 99 % are answered within two batch times, and the stream is slowed
down by at most the load and five hundredths. The exit code is 1 if one is broken.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.bench.broker import broker, machine, new_topic
from tests.brokers.kafka import Kafka
from tests.faults.verifier import send
from tests.faults.workers import REAL, WorkerProcess, wait_until
from worker import settings
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.avro.request import request as checked_request
from worker.endpoint import defaults_of, limits_of

LABELS: Final = ["delivery", "payment", "praise", "refund"]
SENTENCE: Final = "the parcel came late and nobody answers my questions about a refund since last week"
WORDS: Final = SENTENCE.split()
CODECS: Final = Codecs()
CLIENTS: Final = 64
IDLE_MS: Final = 5.0
BATCHES: Final = 2.0
SLACK: Final = 0.05


def _fields(draw: random.Random) -> dict[str, Any]:
    return {"text": " ".join(draw.choices(WORDS, k=30)), "labels": LABELS}


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, fields: dict[str, Any]) -> None:
        """One classification."""
        self._connection.request("POST", "/v1/classify", json.dumps(fields), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {body.decode()}")

    def published(self) -> float:
        """How many results the stream has published."""
        self._connection.close()  # the worker has, too, if it was not used for some seconds
        self._connection.request("GET", "/metrics")
        text = self._connection.getresponse().read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next(sample.value for sample in samples if sample.name == "xnli_worker_records_published_total")


def _timed(work: Callable[[dict[str, Any]], object], fields: dict[str, Any]) -> float:
    began_s = time.perf_counter()
    work(fields)
    return 1000 * (time.perf_counter() - began_s)


def idle(folder: Path, asked: int) -> dict[str, float]:
    """Medians in milliseconds of one classification, over HTTP and by the engine alone, in turns."""
    from worker.app import load_engine  # noqa: PLC0415 (imports torch)

    loaded = settings.load(None, {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none:1", "XNLI_MODEL__NAME": "demo"})
    engine = load_engine(loaded)
    defaults, limits = defaults_of(loaded, engine.pooling, None), limits_of(loaded)

    def alone(fields: dict[str, Any]) -> None:
        request = checked_request(json_request.request({"id": "1"} | fields), defaults, limits)
        engine.run([(request, engine.encode(request))])

    draw = random.Random(1)
    environment = {"XNLI_MODEL__NAME": "demo", "XNLI_LOG__FORMAT": "json"}
    with WorkerProcess(environment, folder / "serve.log", ("worker.cli", "serve")) as process:
        process.wait_for("started", 180)
        client = Client(process.events("started")[0]["http_port"])
        over_http, by_engine = [], []
        for number in range(asked + 20):
            fields = _fields(draw)
            pair = _timed(client.ask, fields), _timed(alone, fields)
            if number >= 20:  # the first ones warm caches up
                over_http.append(pair[0])
                by_engine.append(pair[1])
        process.stop()
    return {"http_ms": statistics.median(over_http), "engine_ms": statistics.median(by_engine)}


class Load:
    """Requests over HTTP as a Poisson process, on as many connections as it takes."""

    def __init__(self, port: int, rate: float, seconds: float, seed: int) -> None:
        draw = random.Random(seed)
        self._due: queue.SimpleQueue[tuple[float, dict[str, Any]] | None] = queue.SimpleQueue()
        began_s = time.perf_counter()
        due_s = draw.expovariate(rate)
        while due_s < seconds:
            self._due.put((began_s + due_s, _fields(draw)))
            due_s += draw.expovariate(rate)
        for _ in range(CLIENTS):
            self._due.put(None)
        self.latencies_ms: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(Client(port),), daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: Client) -> None:
        while (next_one := self._due.get()) is not None:
            due_s, fields = next_one
            if (left_s := due_s - time.perf_counter()) > 0:
                time.sleep(left_s)
            client.ask(fields)
            # From when it was due: a client that is late has waited for an earlier answer.
            self.latencies_ms.append(1000 * (time.perf_counter() - due_s))

    def wait(self) -> None:
        """Until all are answered."""
        for thread in self._threads:
            thread.join(120)


def backlog(kafka: Kafka, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The stream's rates without and with HTTP load, latencies over HTTP, and the batches' time."""
    source, target = new_topic(kafka, "requests"), new_topic(kafka, "results")
    draw = random.Random(2)

    def record(number: int) -> tuple[str, bytes]:
        fields = {"id": f"k{number}"} | _fields(draw)
        return f"k{number}", CODECS.encode_request(json_request.request(fields))[0]

    send(kafka.bootstrap_servers, source, (record(number) for number in range(arguments.messages)))
    environment = {
        "XNLI_MODEL__NAME": "demo",
        "XNLI_LOG__LEVEL": "debug",  # a line for each batch
        "XNLI_LOG__FORMAT": "json",
        "XNLI_HTTP__INFERENCE": "true",
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": new_topic(kafka, "dead"),
    }
    without: list[float] = []
    beside: list[float] = []
    latencies_ms: list[float] = []
    with ExitStack() as stack:
        worker = stack.enter_context(WorkerProcess(environment, folder / "run.log", REAL))
        worker.wait_for("started", 180)
        port = worker.events("started")[0]["http_port"]
        client = Client(port)
        # Until the start counts no more: calls share no forward before.
        wait_until(lambda: client.published() > 12 * 256, 120, "the first results", worker)

        def rate_of(work: Callable[[], None]) -> float:
            before, began_s = client.published(), time.perf_counter()
            work()
            return (client.published() - before) / (time.perf_counter() - began_s)

        for run in range(arguments.runs):
            without.append(rate_of(lambda: time.sleep(arguments.seconds)))
            load = Load(port, arguments.load * without[-1], arguments.seconds, run)
            beside.append(rate_of(lambda: time.sleep(arguments.seconds)))
            load.wait()
            latencies_ms += load.latencies_ms
            print(f"run {run + 1}: {without[-1]:.0f}/s, {beside[-1]:.0f}/s beside HTTP", file=sys.stderr)
        if client.published() > arguments.messages - 1000:
            raise SystemExit("the backlog came to its end: give --messages more")
        batches = [line["inference_ms"] for line in worker.events("batch") if line["trigger"] in {"tokens", "messages"}]
        worker.kill()
    return {
        "stream_per_s": statistics.median(without),
        "beside_per_s": statistics.median(beside),
        "ratio": statistics.median(b / a for a, b in zip(without, beside, strict=True)),
        "http_p50_ms": statistics.median(latencies_ms),
        "http_p99_ms": statistics.quantiles(latencies_ms, n=100)[98],
        "batch_ms": statistics.median(batches),
        "requests": len(latencies_ms),
    }


def main() -> int:
    """Print what was found, and whether it is as promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.2, help="of the stream's rate")
    parser.add_argument("--asked", type=int, default=300, help="classifications of an idle worker")
    parser.add_argument("--messages", type=int, default=60_000, help="the backlog")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        alone = idle(Path(name), arguments.asked)
        with broker() as kafka:
            found = backlog(kafka, Path(name), arguments)
    more_ms = alone["http_ms"] - alone["engine_ms"]
    batches = found["http_p99_ms"] / found["batch_ms"]
    print(f"idle: {alone['http_ms']:.2f} ms over HTTP, {alone['engine_ms']:.2f} ms by the engine: {more_ms:+.2f} ms")
    print(
        f"backlog: p99 {found['http_p99_ms']:.0f} ms over HTTP, p50 {found['http_p50_ms']:.0f} ms; a batch takes "
        f"{found['batch_ms']:.0f} ms: {batches:.2f} batches"
    )
    print(
        f"stream: {found['stream_per_s']:.0f}/s alone, {found['beside_per_s']:.0f}/s beside {arguments.load:.0%} of "
        f"that over HTTP: {found['ratio']:.3f}"
    )
    print(json.dumps({"idle": alone, "backlog": found, "options": vars(arguments), "machine": machine()}))
    kept = more_ms <= IDLE_MS and batches <= BATCHES and found["ratio"] >= 1 - arguments.load - SLACK
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
