"""Draws the dashboard over a real worker under load: ``python -m tests.bench.dashboard``.

Prometheus scrapes the worker by the configuration of the compose file; each query of each panel of Grafana's JSON is
asked of it, and what it answers is drawn where the panel lies. Grafana itself is not needed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import Producer

from tests.bench.broker import broker, new_topic
from tests.brokers.kafka import Kafka
from tests.brokers.ports import free_ports
from tests.brokers.process import Process
from tests.faults.verifier import Topics
from tests.faults.workers import REAL, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs

ROOT: Final = Path(__file__).parents[2]
BOARD: Final = ROOT / "deploy" / "grafana" / "xnli-worker.json"
PICTURE: Final = ROOT / "docs" / "dashboard.png"
_STEP_S: Final = 5
# Of a worker that uses no certificate of its own there is no such series.
EMPTY: Final = {"Own certificates end in"}


def _load(kafka: Kafka, topic: str, stop: threading.Event) -> None:
    """The sample messages again and again, in a wave of a minute, and one in fifty that cannot be read."""
    codecs = Codecs()
    lines = (ROOT / "worker" / "demo" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "partitioner": "murmur2_random"})
    sent, began_s = 0, time.monotonic()
    while not stop.is_set():
        for _ in range(round(20 + 15 * math.sin((time.monotonic() - began_s) / 60 * 2 * math.pi))):
            sample = samples[sent % len(samples)]
            try:
                value, _ = codecs.encode_request(json_request.request(sample))
            except (ValueError, KeyError):
                value = b"\x17"
            producer.produce(topic, b"\x17" if sent % 50 == 0 else value, key=str(sample.get("id", sent)))
            sent += 1
        producer.poll(0)
        stop.wait(0.5)
    producer.flush(10)


def _call(url: str, stop: threading.Event) -> None:
    """A sample over HTTP, ten times a second; one in twenty is refused."""
    text = "The central bank raised interest rates."
    body = json.dumps({"text": text, "labels": ["finance", "sport"]}).encode()
    sent = 0
    while not stop.wait(0.1):
        sent += 1
        request = urllib.request.Request(  # noqa: S310 (our own)
            f"{url}/v1/classify", b"{}" if sent % 20 == 0 else body, {"Content-Type": "application/json"}
        )
        # (What is refused, or not answered while the model is loaded, is counted by the worker.)
        with suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 (our own)
            answer.read()


def _prometheus(folder: Path, target: str) -> tuple[Process, str]:
    """Prometheus with the configuration of the repository, its discovery by DNS replaced by this target."""
    deploy = ROOT / "deploy" / "prometheus"
    configuration = yaml.safe_load((deploy / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    configuration["global"]["scrape_interval"] = configuration["global"]["evaluation_interval"] = f"{_STEP_S}s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    shutil.copy(deploy / "rules.yml", folder)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    arguments = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=7d",
        f"--web.listen-address={address}",
    ]
    return Process(arguments, log=folder / "prometheus.log", directory=folder), f"http://{address}"


def _ask(url: str, query: str, began_s: float, ended_s: float) -> list[Any]:
    for variable, value in {"$job": "xnli-worker", "$instance": ".*", "$__rate_interval": f"{4 * _STEP_S}s"}.items():
        query = query.replace(variable, value)
    asked = urllib.parse.urlencode({"query": query, "start": began_s, "end": ended_s, "step": _STEP_S})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=30) as answer:  # noqa: S310 (our own)
        found: list[Any] = json.load(answer)["data"]["result"]
        return found


def observe(minutes: float) -> list[tuple[dict[str, Any], list[tuple[str, list[Any]]]]]:
    """Each panel with its series: their names, and their points."""
    with broker() as kafka, tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        topics = Topics(*(new_topic(kafka, hint) for hint in ("requests", "results", "dead")))
        port = free_ports(1)[0]
        environment = topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_MODEL__NAME": "demo",
            "XNLI_HTTP__PORT": str(port),
            "XNLI_HTTP__INFERENCE": "true",
        }
        prometheus, url = _prometheus(folder, f"127.0.0.1:{port}")
        stop = threading.Event()
        try:
            with WorkerProcess(environment, folder / "worker.log", REAL) as worker:
                began_s = time.time()
                worker.wait_for("rebalance", 180)
                senders = [
                    threading.Thread(target=_load, args=(kafka, topics.requests, stop)),
                    threading.Thread(target=_call, args=(f"http://127.0.0.1:{port}", stop)),
                ]
                for sender in senders:
                    sender.start()
                wait_until(lambda: time.time() > began_s + 60 * minutes, 60 * minutes + 60, "the load", worker, 1.0)
                found = [
                    (panel, [series for target in panel["targets"] for series in _series(url, target, began_s)])
                    for panel in json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
                    if "targets" in panel
                ]
                stop.set()
                for sender in senders:
                    sender.join()
                worker.stop()
        finally:
            stop.set()
            prometheus.kill()
    return found


def _series(url: str, target: dict[str, Any], began_s: float) -> list[tuple[str, list[Any]]]:
    found = []
    for result in _ask(url, target["expr"], began_s, time.time()):
        name = target.get("legendFormat", "")
        for label, value in result["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        found.append((name or str(result["metric"].get("model", "")), result["values"]))
    return found


def draw(panels: list[tuple[dict[str, Any], list[tuple[str, list[Any]]]]], path: Path) -> None:
    """The panels, each where it lies."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 (of the extra `peers`)

    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = plt.figure(figsize=(18, height * 0.36))
    for panel, series in panels:
        at = panel["gridPos"]
        axes = figure.add_axes(
            (
                (at["x"] + 0.8) / 24.5,
                1 - (at["y"] + at["h"] - 0.9) / height,
                (at["w"] - 1.4) / 24.5,
                (at["h"] - 2.2) / height,
            )
        )
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        if panel["type"] != "timeseries":
            axes.axis("off")
            unit = panel["fieldConfig"]["defaults"].get("unit", "")
            shown = "\n".join(_last(name, points, unit) for name, points in series) or "no data"
            axes.text(0.5, 0.4, shown, ha="center", va="center", fontsize=16 if panel["type"] == "stat" else 9)
            continue
        began_s = min((points[0][0] for _, points in series), default=0)
        for name, points in series:
            axes.plot([t - began_s for t, _ in points], [float(value) for _, value in points], label=name, lw=1)
        if 0 < len(series) <= 8:
            axes.legend(fontsize=6, loc="upper left")
        axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=70)


def _last(name: str, points: list[Any], unit: str) -> str:
    value = float(points[-1][1])
    text = f"{100 * value:.1f} %" if unit == "percentunit" else f"{value:.3g}{' s' if unit == 's' else ''}"
    return f"{name}: {text}" if name and len(name) < 40 else text


def main() -> int:
    """Draw, and say which panels have no data. 1 if one has none that should."""
    parser = argparse.ArgumentParser(description="Draws the dashboard over a real worker under load.")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    panels = observe(arguments.minutes)
    empty = {panel["title"] for panel, series in panels if not series}
    draw(panels, arguments.picture)
    print(f"{len(panels)} panels, without data: {sorted(empty)}; {arguments.picture}")
    return 0 if empty <= EMPTY else 1


if __name__ == "__main__":
    sys.exit(main())
