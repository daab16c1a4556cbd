"""Makes the pictures of docs/http.md: ``python -m tests.documents.pictures [--seconds 150]``.

A worker with the shipped checkpoint on real Kafka, under load that comes and goes, is looked at in Chromium.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.brokers.browser import chromium, picture
from tests.brokers.kafka import KafkaCluster
from tests.faults.workers import REAL, ROOT, WorkerProcess
from worker.avro import json_request
from worker.avro.codec import Codecs

DOCS = ROOT / "docs"
SAMPLES = ROOT / "worker" / "demo" / "samples.jsonl"
PER_S = 40.0


def samples() -> list[dict[str, Any]]:
    """Requests of the demo that classify."""
    lines = (json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.get("labels")]


def keep_sending(servers: str, topic: str, stopping: threading.Event) -> None:
    """Messages in waves, now and then one that asks for nothing."""
    producer = Producer({"bootstrap.servers": servers})
    draw, codecs, requests = random.Random(1), Codecs(), samples()
    number = 0
    while not stopping.is_set():
        wave = 1.0 + 0.7 * math.sin(number / 400)
        number += 1
        fields = draw.choice(requests) | {"id": f"m{number}"}
        if number % 700 == 0:
            fields |= {"labels": []}
        value = codecs.encode_request(json_request.request(fields))[0]
        producer.produce(topic, value if number % 1100 else value[: len(value) // 2], fields["id"])
        producer.poll(0)
        stopping.wait(draw.expovariate(PER_S * wave))
    producer.flush(10)


def keep_asking(port: int, stopping: threading.Event) -> None:
    """Requests over HTTP."""
    draw, requests = random.Random(2), samples()
    while not stopping.is_set():
        fields = draw.choice(requests)
        body = json.dumps({"text": fields["text"], "labels": fields["labels"] if draw.random() > 0.02 else []}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()
        stopping.wait(draw.expovariate(8.0))


def make(url: str, folder: Path) -> None:
    """Look at the page in four ways."""
    with chromium(width=1180, height=700) as driver:
        driver.get(url)
        picture(driver, folder / "http-page.png")
        sample = next(request for request in samples() if request["id"] == "en-moderation")
        fields = {
            "text": sample["text"],
            "labels": ", ".join(sample["labels"]),
            "hypothesis_template": sample["hypothesis_template"],
        }
        for name, value in fields.items():
            field = driver.find_element("name", name)
            field.clear()
            field.send_keys(value)
        driver.find_element("css selector", "#try button").click()
        deadline_s = time.monotonic() + 30
        while not driver.find_elements("css selector", "#answer tbody tr") and time.monotonic() < deadline_s:
            time.sleep(0.1)
        driver.find_element("css selector", "section[aria-labelledby=try-title]").screenshot(
            str(folder / "http-page-try.png")
        )
    for name, options in {
        "http-page-phone": {"width": 390, "height": 844, "scale": 1.5},
        "http-page-dark": {"width": 1180, "height": 700, "is_dark": True},
    }.items():
        with chromium(**options) as driver:  # type: ignore[arg-type]
            driver.get(url)
            picture(driver, folder / f"{name}.png", whole=name != "http-page-phone")


def main() -> None:
    """Start, wait, look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="how long the lines on the page are")
    parser.add_argument("--into", type=Path, default=DOCS)
    arguments = parser.parse_args()
    stopping = threading.Event()
    with tempfile.TemporaryDirectory() as folder, KafkaCluster() as kafka:
        topics = {name: f"messages.{name}" for name in ("requests", "results", "dead")}
        for topic in topics.values():
            kafka.create_topic(topic, 6)
        environment = {
            "XNLI_MODEL__NAME": "demo",
            "XNLI_LOG__FORMAT": "json",
            "XNLI_HTTP__INFERENCE": "true",
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics["requests"],
            "XNLI_TOPICS__INPUT": topics["requests"],
            "XNLI_TOPICS__OUTPUT": topics["results"],
            "XNLI_TOPICS__DEAD_LETTER": topics["dead"],
        }
        with WorkerProcess(environment, Path(folder) / "log", REAL) as worker:
            worker.wait_for("rebalance", 240)
            port = worker.events("started")[0]["http_port"]
            works: list[Callable[[], None]] = [
                lambda: keep_sending(kafka.bootstrap_servers, topics["requests"], stopping),
                lambda: keep_asking(port, stopping),
            ]
            threads = [threading.Thread(target=work, daemon=True) for work in works]
            for thread in threads:
                thread.start()
            time.sleep(arguments.seconds)
            make(f"http://127.0.0.1:{port}/", arguments.into)
            stopping.set()
            for thread in threads:
                thread.join(20)


if __name__ == "__main__":
    main()
