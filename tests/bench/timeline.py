"""When the device computed and when it stood idle: the real worker over a backlog, exactly_once, on real Kafka.

    python -m tests.bench.timeline [--shape base|small|demo|fast] [--messages N] [--out FILE.png]

Everything is read from the worker's own canonical ``batch`` lines. A line is written when the batch is acknowledged, so
its timestamp less ``publish_ms`` is when the Kafka thread took the results, less ``queued_ms`` when the device ended,
less ``inference_ms`` when it began, and less ``waited_ms`` when the batch's first message, tokenised, was in line.

The idle share is the part of the time, from the first batch's beginning to the last one's end, in which the engine did
not work. Beside it what that would be if the worker did one thing after the other: the seconds that the Kafka thread
spent on decoding and tokenising and on publishing, from the worker's metrics, of those and the engine's. On a CPU the
device is the processor, which the Kafka thread uses as well: the engine then works longer, but is not idle.

``demo`` is the shipped checkpoint; ``base`` and ``small`` have random weights, which are as fast as trained ones.
``fast`` stands for a GPU: a model that only waits, 20 ms for each batch of 64 messages, whatever the worker does.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.bench.broker import broker, machine, new_topic
from tests.brokers.kafka import Kafka
from tests.faults.verifier import group_lag, send
from tests.faults.workers import REAL, SCRIPTED, WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.commands.workload import DEMO_CHECKPOINT, SHAPES, make_checkpoint, workload

DEMO, FAST = "demo", "fast"
MESSAGES = {"base": 300, "small": 2000, DEMO: 5000, FAST: 30_000}  # at most a minute of one thread with AMX
PARTITIONS = 4
THREADS = 1  # of torch: the Kafka thread wants a core too
CLOSE_UP = 9  # batches
WAITING = {"XNLI_TEST_SECONDS_PER_BATCH": "0.02", "XNLI_BATCH__MAX_MESSAGES": "64"}

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """A batch's life, in seconds since the first batch began."""

    lined_up_s: float  # its first message, read and tokenised, was in line
    began_s: float
    ended_s: float
    taken_s: float  # by the Kafka thread
    acknowledged_s: float


def spans(lines: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Batches from their canonical lines, one at least, in the order in which they were computed."""
    found: list[Span] = []
    acknowledged_s = 0.0
    for line in lines:
        # Batches that were published together have one moment, and the first of them carries the counts: the lines
        # that follow it were written a little later, the more so if the interpreter was the other thread's.
        if not found or line["published"] or line["dead_lettered"]:
            acknowledged_s = dt.datetime.fromisoformat(line["timestamp"]).timestamp()
        taken_s = acknowledged_s - line["publish_ms"] / 1000
        ended_s = taken_s - line["queued_ms"] / 1000
        began_s = ended_s - line["inference_ms"] / 1000
        found.append(Span(began_s - line["waited_ms"] / 1000, began_s, ended_s, taken_s, acknowledged_s))
    found.sort(key=lambda span: span.began_s)
    zero_s = found[0].began_s
    return [
        Span(*(at_s - zero_s for at_s in (s.lined_up_s, s.began_s, s.ended_s, s.taken_s, s.acknowledged_s)))
        for s in found
    ]


def gaps(found: Sequence[Span]) -> list[Interval]:
    """When the device stood idle between two batches. Known to a few milliseconds, which may make one look negative."""
    return [(one.ended_s, other.began_s) for one, other in pairwise(found) if other.began_s > one.ended_s]


def stage_seconds(worker: WorkerProcess) -> dict[str, float]:
    """How long each stage took in all, by the worker's own metrics."""
    port = worker.events("started")[-1]["http_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:  # loopback, our own worker
        families = text_string_to_metric_families(answer.read().decode())
    points = (point for family in families for point in family.samples)
    return {point.labels["stage"]: point.value for point in points if point.name == "xnli_worker_stage_seconds_sum"}


def observe(kafka: Kafka, shape: str, messages: int, folder: Path) -> tuple[list[Span], dict[str, float]]:
    """Let a worker answer a backlog that is there when it starts; its batches and its stages' seconds."""
    source, target, dead = (new_topic(kafka, hint, PARTITIONS) for hint in ("requests", "results", "dead"))
    codecs = Codecs()
    requests = workload(messages)
    # "plain" tells the scripted model to look for nothing else in the text.
    data = (json_request.request({"id": r.id, "text": f"plain {r.text}", "labels": list(r.labels)}) for r in requests)
    send(kafka.bootstrap_servers, source, ((datum["id"], codecs.encode_request(datum)[0]) for datum in data))
    environment = {
        "XNLI_LOG__LEVEL": "debug",  # a line for each batch
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": source,
        "XNLI_TOPICS__INPUT": source,
        "XNLI_TOPICS__OUTPUT": target,
        "XNLI_TOPICS__DEAD_LETTER": dead,
        "XNLI_MODEL__DEVICE": "cpu",
        "XNLI_MODEL__SELF_TEST": "off",  # random weights have no right answers
        "OMP_NUM_THREADS": str(THREADS),
    }
    if shape == FAST:
        environment |= WAITING
    elif shape == DEMO:
        environment["XNLI_MODEL__NAME"] = str(DEMO_CHECKPOINT)
    else:
        environment["XNLI_MODEL__NAME"] = str(make_checkpoint(SHAPES[shape], folder / shape))
    module = SCRIPTED if shape == FAST else REAL
    with WorkerProcess(environment, folder / "worker.log", module) as worker:
        worker.wait_for("rebalance", 120)
        wait_until(lambda: not group_lag(kafka.bootstrap_servers, source, source), 600, "every result", worker)
        seconds = stage_seconds(worker)
        worker.stop()
        lines = worker.events("batch")
    if (answered := sum(line["messages"] for line in lines)) != messages:
        raise SystemExit(f"{messages} messages sent, {answered} in batches: nothing to tell from that")
    return spans(lines), seconds


def describe(shape: str, messages: int, found: Sequence[Span], stages: Mapping[str, float]) -> dict[str, Any]:
    """The figures. Durations are the worker's own and exact, so the share is of their sum and not of the gaps."""
    steady_s, device_s = found[-1].ended_s, sum(span.ended_s - span.began_s for span in found)
    kafka_s = stages["decode"] + stages["publish"]
    return {
        "shape": shape,
        "messages": messages,
        "batches": len(found),
        "steady_s": round(steady_s, 3),
        "device_s": round(device_s, 3),
        "idle_share": round(1 - device_s / steady_s, 5),
        "longest_gap_s": round(max((ended_s - began_s for began_s, ended_s in gaps(found)), default=0.0), 4),
        "decode_s": round(stages["decode"], 3),
        "publish_s": round(stages["publish"], 3),
        "idle_share_one_after_the_other": round(kafka_s / (kafka_s + device_s), 5),
    }


def draw(report: Mapping[str, Any], found: Sequence[Span], path: Path) -> None:
    """Three lanes over seconds: the whole run, and a few batches around the longest gap, each with its number."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is set)

    mpl.rcParams.update({"font.size": 13, "svg.fonttype": "path", "svg.hashsalt": "xnli"})
    figure, (whole, close) = plt.subplots(2, figsize=(12, 6.4), layout="constrained")
    _lanes(whole, found)
    whole.set_xlim(-0.01 * found[-1].ended_s, 1.01 * max(span.acknowledged_s for span in found))
    whole.set_title("The whole run", loc="left", fontsize=13)
    longest = max(range(len(found) - 1), key=lambda i: found[i + 1].began_s - found[i].ended_s, default=0)
    first = max(0, min(longest - CLOSE_UP // 2 + 1, len(found) - CLOSE_UP))
    shown = found[first : first + CLOSE_UP]
    _lanes(close, found)
    width_s = shown[-1].ended_s - shown[0].began_s
    close.set_xlim(shown[0].began_s - 0.01 * width_s, shown[-1].ended_s + 0.02 * width_s)
    for number, span in enumerate(shown, first + 1):
        middle_s = (span.began_s + span.ended_s) / 2
        close.text(middle_s, 1, str(number), color="white", ha="center", va="center", weight="bold")
    close.set_title(
        f"Close-up: batches {first + 1} to {first + len(shown)}, around the longest gap "
        f"({1000 * report['longest_gap_s']:.0f} ms)",
        loc="left",
        fontsize=13,
    )
    close.set_xlabel("seconds since the first batch began")
    figure.suptitle(
        f"The device stood idle for {report['idle_share']:.2%} of {report['steady_s']:.0f} s. One thing after the "
        f"other it would be {report['idle_share_one_after_the_other']:.1%}.\n"
        f"{report['shape']} model, exactly_once, a backlog of {report['messages']} messages: "
        f"reading {report['decode_s']:.1f} s, publishing {report['publish_s']:.1f} s",
        x=0.01,
        ha="left",
        fontsize=15,
    )
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lanes(axes: Any, found: Sequence[Span]) -> None:
    """Neighbouring batches differ in shade, the same in every lane; what is red is a gap."""
    shades = [("#1d4ed8", "#60a5fa")[i % 2] for i in range(len(found))]
    axes.vlines([span.lined_up_s for span in found], 1.65, 2.35, colors=shades, linewidth=2)
    bars = (
        (0.65, shades, 0.0, [(span.began_s, span.ended_s) for span in found]),
        (0.65, "#dc2626", 0.0, gaps(found)),  # without an edge, which would make a millisecond as wide as a line
        (-0.35, shades, 0.8, [(span.taken_s, span.acknowledged_s) for span in found]),
    )
    for bottom, colours, edge, intervals in bars:
        widths = [(began_s, ended_s - began_s) for began_s, ended_s in intervals]
        axes.broken_barh(widths, (bottom, 0.7), facecolors=colours, edgecolors=colours, linewidth=edge)
    axes.set_yticks([2, 1, 0], ["first message\ntokenised", "device", "publish"])
    axes.set_ylim(-0.6, 2.6)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main() -> int:
    """Print the figures as JSON, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*MESSAGES], default=DEMO)
    parser.add_argument("--messages", type=int, help="by default as many as take about a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw the timeline; PNG or SVG by its ending")
    arguments = parser.parse_args()
    messages = arguments.messages or MESSAGES[arguments.shape]
    with broker() as kafka, tempfile.TemporaryDirectory(prefix="xnli-bench-") as folder:
        found, stages = observe(kafka, arguments.shape, messages, Path(folder))
    report = describe(arguments.shape, messages, found, stages)
    print(json.dumps(report | {"machine": machine()}))
    if arguments.out is not None:
        draw(report, found, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
