"""Draws the dashboard over a real worker under load: ``python -m tests.bench.dashboard``.

Prometheus scrapes the worker by the configuration of the compose file; each query of each panel of Grafana's JSON is
asked of it, and what it answers is drawn where the panel lies. Grafana itself is not needed. The load is one that two
cores keep up with: messages in waves, calls over HTTP, label sets, a second model in the shadow, and swaps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import Producer

from tests.bench.broker import broker, new_topic
from tests.brokers.kafka import Kafka
from tests.brokers.ports import free_ports
from tests.brokers.process import Process
from tests.families.revisions import Link, revision
from tests.faults.verifier import Topics
from tests.faults.workers import REAL, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs

ROOT: Final = Path(__file__).parents[2]
BOARD: Final = ROOT / "deploy" / "grafana" / "xnli-worker.json"
PICTURE: Final = ROOT / "docs" / "dashboard.png"
_SET: Final = ROOT / "schemas" / "examples" / "label-set-moderation.json"
_STEP_S: Final = 5
_SWAP_EVERY_S: Final = 40.0
_Series = list[tuple[str, list[Any]]]
_UNITS: Final[dict[str, Callable[[float], str]]] = {
    "percentunit": lambda value: f"{100 * value:.1f} %",
    "s": lambda value: f"{value:.3g} s",
    "bytes": lambda value: f"{value / (1 << 20):.0f} MiB" if value >= 1 << 20 else f"{value / 1024:.1f} KiB",
}
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
        for _ in range(round(4 + 3 * math.sin((time.monotonic() - began_s) / 60 * 2 * math.pi))):
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


def _put_sets(kafka: Kafka, topic: str) -> None:
    """Two sets, and one that is refused."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for name, value in {"moderation": _SET.read_bytes(), "moods": b'["happy", "sad"]', "broken": b"[]"}.items():
        producer.produce(topic, value, key=name)
    producer.flush(10)


def _call(url: str, stop: threading.Event) -> None:
    """Requests over HTTP, twice a second, of one text or of eight; one in twenty is refused."""
    text = "The central bank raised interest rates."
    one = {"text": text, "labels": ["finance", "sport"]}
    bodies: list[object] = [one, [one] * 8, {"text": text, "label_set": "moods"}, one]
    sent = 0
    while not stop.wait(0.5):
        sent += 1
        body: object = {} if sent % 20 == 0 else bodies[sent % len(bodies)]
        request = urllib.request.Request(  # noqa: S310 (our own)
            f"{url}/v1/classify", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        # (What is refused, or not answered while the model is loaded, is counted by the worker.)
        with suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 (our own)
            answer.read()


def _swap(worker: WorkerProcess, link: Link, targets: list[Path], stop: threading.Event) -> None:
    """Ask for another model every now and then: for one that serves, for one that cannot, for the same again."""
    asked = 0
    while not stop.wait(_SWAP_EVERY_S):
        asked += 1
        link.to(targets[asked % len(targets)])
        worker.signal(signal.SIGHUP)


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


def observe(minutes: float) -> list[tuple[dict[str, Any], _Series]]:
    """Each panel with its series: their names, and their points."""
    with broker() as kafka, tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        topics = Topics(*(new_topic(kafka, hint) for hint in ("requests", "results", "dead")))
        sets = new_topic(kafka, "sets", 1, {"cleanup.policy": "compact"})
        _put_sets(kafka, sets)
        first, second = revision(folder / "one", 1.0), revision(folder / "two", 0.8)
        link = Link(folder / "demo", first)
        port = free_ports(1)[0]
        environment = topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_TOPICS__LABEL_SETS": sets,
            "XNLI_LABEL_SETS__WAIT_S": "5",
            "XNLI_MODEL__NAME": str(link.path),
            "XNLI_MODEL__RELOAD": "signal",
            "XNLI_MODEL__SHADOW": str(second),
            "XNLI_MODEL__SHADOW_SHARE": "0.2",
            "XNLI_HTTP__PORT": str(port),
            "XNLI_HTTP__INFERENCE": "true",
        }
        prometheus, url = _prometheus(folder, f"127.0.0.1:{port}")
        try:
            with WorkerProcess(environment, folder / "worker.log", REAL) as worker:
                worker.wait_for("rebalance", 180)
                return _loaded(
                    worker,
                    [
                        lambda stop: _load(kafka, topics.requests, stop),
                        lambda stop: _call(f"http://127.0.0.1:{port}", stop),
                        lambda stop: _swap(worker, link, [first, second, folder, second], stop),
                    ],
                    lambda began_s: _panels(url, began_s),
                    60 * minutes,
                )
        finally:
            prometheus.kill()


def _loaded(
    worker: WorkerProcess,
    loads: list[Callable[[threading.Event], None]],
    seen: Callable[[float], list[tuple[dict[str, Any], _Series]]],
    seconds: float,
) -> list[tuple[dict[str, Any], _Series]]:
    """What is seen of a worker after so long under these loads."""
    stop = threading.Event()
    threads = [threading.Thread(target=load, args=(stop,)) for load in loads]
    began_s = time.time()
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: time.time() > began_s + seconds, seconds + 60, "the load", worker, 1.0)
        return seen(began_s)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        worker.stop()


def _panels(url: str, began_s: float) -> list[tuple[dict[str, Any], _Series]]:
    return [
        (panel, [series for target in panel.get("targets", ()) for series in _series(url, target, began_s)])
        for panel in json.loads(BOARD.read_text(encoding="utf-8"))["panels"]
    ]


def _series(url: str, target: dict[str, Any], began_s: float) -> _Series:
    found = []
    for result in _ask(url, target["expr"], began_s, time.time()):
        name = target.get("legendFormat", "")
        for label, value in result["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        points = [(at - began_s, float(value)) for at, value in result["values"]]
        found.append((name or Path(result["metric"].get("model", "")).name, points))
    return found


def draw(panels: list[tuple[dict[str, Any], _Series]], path: Path) -> None:
    """The panels, each where it lies, all over the same time."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 (of the extra `peers`)

    plt.style.use("seaborn-v0_8-whitegrid")
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    most_s = max(points[-1][0] for _, series in panels for _, points in series)
    figure = plt.figure(figsize=(18, height * 0.36))
    for panel, series in panels:
        at = panel["gridPos"]
        left, top = (at["x"] + 0.8) / 24.5, 1 - at["y"] / height
        if panel["type"] == "row":
            figure.text(left - 0.3 / 24.5, top - 0.8 / height, panel["title"], fontsize=13, weight="bold", va="center")
            continue
        axes = figure.add_axes((left, top - (at["h"] - 0.9) / height, (at["w"] - 1.4) / 24.5, (at["h"] - 2.2) / height))
        axes.set_title(panel["title"], fontsize=10, loc="left")
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        if panel["type"] != "timeseries":
            axes.axis("off")
            axes.text(0, 0.35, _latest(series, unit), va="center", fontsize=16 if panel["type"] == "stat" else 11)
            continue
        _draw_lines(axes, series, unit)
        axes.set_xlim(0, most_s)
    figure.savefig(path, dpi=70)


def _draw_lines(axes: Any, series: _Series, unit: str) -> None:
    moving = [name for name, points in series if any(value for _, value in points)]
    for name, points in series:
        # What has no value for a moment (no batch ended) is a gap, as in Grafana. Of many, those that stay at 0 are
        # not named.
        label = name if len(series) <= 4 or name in moving else "_"
        axes.plot([at for at, _ in points], [value for _, value in points], label=label, lw=1.3)
    if len(series) <= 4 or moving:
        axes.legend(fontsize=7, loc="upper left", frameon=True, framealpha=0.7)
    axes.tick_params(labelsize=8)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # the legend has room above the lines
    if unit in _UNITS:
        axes.yaxis.set_major_formatter(lambda value, _: _UNITS[unit](value))


def _latest(series: _Series, unit: str) -> str:
    """The last values; series that have ended (of a model that has left) have none."""
    last_s = max((points[-1][0] for _, points in series), default=0)
    lines = []
    for name, points in series:
        if points[-1][0] == last_s:
            shown = _UNITS.get(unit, "{:.3g}".format)(points[-1][1])
            lines.append(f"{name}: {shown}" if name and len(name) < 40 else shown)
    return "\n".join(lines) or "no data"


def main() -> int:
    """Draw, and say which panels have no data. 1 if one has none that should."""
    parser = argparse.ArgumentParser(description="Draws the dashboard over a real worker under load.")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    panels = observe(arguments.minutes)
    shown = [(panel, series) for panel, series in panels if panel["type"] != "row"]
    empty = {panel["title"] for panel, series in shown if not series}
    draw(panels, arguments.picture)
    print(f"{len(shown)} panels, without data: {sorted(empty)}; {arguments.picture}")
    return 0 if empty <= EMPTY else 1


if __name__ == "__main__":
    sys.exit(main())
