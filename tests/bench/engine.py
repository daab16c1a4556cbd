"""The engine against what a user would run instead, on the same pairs, in alternating runs. Prints a table, then JSON.

``python -m tests.bench.engine --shape base --plot bench.svg`` also draws a chart; ``--from bench.json`` draws it of an
earlier run's JSON, measuring nothing. Peers that are not installed are left out (``pip install xnli-worker[peers]`` has
them all). Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bench import peers
from worker.commands.bench import MAX_TOKENS, alternating_runs, device_name
from worker.commands.roofline import roofline
from worker.commands.workload import SHAPES, answer, make_checkpoint, workload
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.precision import Processor
from worker.messages import Request

BATCHES = (8, 32, 128)  # sizes a peer may choose from
ROOFLINE = "GEMM roofline"
PIPELINE = "pipeline, default"
LABELS = (2, 4, 8, 16, 32, 64)
PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's name, the package it needs, how to make it, and the batch sizes it may choose from."""

    name: str
    package: str
    make: Callable[..., Callable[[], None]]
    batches: tuple[int, ...] = BATCHES
    cuda: bool = False  # whether it is measured there too


PEERS = (
    Peer(PIPELINE, "transformers", partial(peers.pipeline, dtype=torch.float32), (1,), cuda=True),
    Peer("pipeline fp32", "transformers", partial(peers.pipeline, dtype=torch.float32), (12,), cuda=True),
    Peer("CrossEncoder fp32", "sentence_transformers", partial(peers.cross_encoder, dtype=torch.float32), cuda=True),
    Peer("CrossEncoder bf16", "sentence_transformers", partial(peers.cross_encoder, dtype=torch.bfloat16), cuda=True),
    Peer("ONNX Runtime fp32", "onnxruntime", partial(peers.onnx_runtime, int8=False)),
    Peer("ONNX Runtime int8", "onnxruntime", partial(peers.onnx_runtime, int8=True)),
    Peer("OpenVINO fp32", "openvino", partial(peers.openvino, precision="f32")),
    Peer("OpenVINO bf16", "openvino", partial(peers.openvino, precision="bf16")),
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--messages", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", action="append", help="only subjects whose name contains this; may be given again")
    parser.add_argument("--out", type=Path, help="directory for bench.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart; PNG or SVG by its ending")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="JSON", help="show this run's, measure nothing")
    arguments = parser.parse_args()
    if arguments.earlier is not None:
        show(json.loads(arguments.earlier.read_text(encoding="utf-8")), arguments)
        return
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as directory:
        report = measure(arguments, make_checkpoint(SHAPES[arguments.shape], Path(directory)))
    show(report, arguments)


def show(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the table, then JSON to where it was asked for, and draw."""
    print(table(report))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    elif arguments.earlier is None:
        print(json.dumps(report))
    if arguments.plot is not None:
        draw(report, arguments.plot)


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All subjects in alternating runs, then the engine's own claims."""
    requests = workload(arguments.messages)
    wanted = [*(arguments.only or [""])]
    device = torch.device(arguments.device)
    precisions = [precision for precision in ours(device) if chosen(f"ours {precision}", wanted)]
    engines = {precision: open_engine(directory, device, precision) for precision in precisions}
    subjects: dict[str, Callable[[], object]] = {
        f"ours {precision}": partial(answer, engine, requests) for precision, engine in engines.items()
    }
    work = answer(next(iter(engines.values())), requests)
    pairs, tokens = sum(done.computed for done in work), sum(done.tokens for done in work)
    for precision in ("fp32", "bf16"):
        if chosen(f"{ROOFLINE} {precision}", wanted):
            checkpoint = load(str(directory), device=str(device), precision=precision, self_test="off", progress=False)
            subjects[f"{ROOFLINE} {precision}"] = roofline(checkpoint, tokens)
    sizes: dict[str, int] = {}
    for peer in PEERS:
        if chosen(peer.name, wanted) and peers.installed(peer.package) and (peer.cuda or device.type == "cpu"):
            sizes[peer.name], subjects[peer.name] = tune(peer, directory, device, requests)
    note(f"{pairs} pairs, {tokens} tokens; {len(subjects)} subjects")
    seconds = alternating_runs(subjects, runs=arguments.runs)
    return {
        "shape": arguments.shape,
        "messages": arguments.messages,
        "pairs": pairs,
        "tokens": tokens,
        "seconds": seconds,
        "batch_sizes": sizes,
        "claims": claims(next(reversed(engines.values())), arguments.messages, arguments.runs),
        "machine": {"date": dt.datetime.now(dt.UTC).date().isoformat(), **machine(device)},
    }


def ours(device: torch.device) -> list[str]:
    """The precisions in which the engine is measured; the fastest on this device last."""
    if device.type != "cpu":
        return ["fp32", "fp16", "bf16"]
    processor = Processor.probe()
    return ["fp32", *(["int8"] if processor.vnni else []), *(["bf16"] if processor.amx_bf16 else [])]


def chosen(name: str, wanted: Sequence[str]) -> bool:
    """Whether --only names it."""
    return any(part in name for part in wanted)


def open_engine(directory: Path, device: torch.device, precision: str) -> Engine:
    """The engine with the worker's default settings."""
    checkpoint = load(str(directory), device=str(device), precision=precision, self_test="off", progress=False)
    engine = Engine(checkpoint, max_tokens=MAX_TOKENS)
    engine.warm_up()
    return engine


def tune(
    peer: Peer, directory: Path, device: torch.device, requests: Sequence[Request]
) -> tuple[int, Callable[[], None]]:
    """The peer at its best batch size."""
    options = {"device": str(device)} if peer.cuda else {}
    made = {batch: peer.make(directory, requests, batch=batch, **options) for batch in peer.batches}
    if len(made) > 1:
        seconds = alternating_runs({str(batch): run for batch, run in made.items()}, runs=1)
        best = int(min(seconds, key=lambda batch: seconds[batch][0]))
    else:
        (best,) = made
    note(f"{peer.name}: batches of {best}")
    return best, made[best]


def claims(engine: Engine, messages: int, runs: int) -> dict[str, float]:
    """The time of a workload half of whose pairs are repeats, to that of as many distinct ones; and of label counts.

    The latter is the time of a pair at n labels a message to that at two, for the same texts: at most 1 is linear.
    """
    single = workload(messages // 2)
    subjects = {"single": single, "twice": [request for request in single for _ in range(2)]}
    subjects |= {str(n): workload(4, labels=(n, n), seed=1) for n in LABELS}
    seconds = alternating_runs(
        {name: partial(answer, engine, requests) for name, requests in subjects.items()}, runs=runs
    )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "half_repeated": middle["twice"] / (2 * middle["single"]),
        **{f"time_per_pair_{n}_labels": middle[str(n)] / n / (middle[str(LABELS[0])] / LABELS[0]) for n in LABELS},
    }


def rows(report: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Name, median seconds, pairs a second, and times the pipeline's default; slowest first."""
    middle = {name: statistics.median(times) for name, times in report["seconds"].items()}
    base = middle.get(PIPELINE, float("nan"))
    return [
        (name, taken, report["pairs"] / taken, base / taken)
        for name, taken in sorted(middle.items(), key=lambda item: -item[1])
    ]


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | s | pairs/s | tokens/s | x pipeline | fastest to slowest run |", "|---|--:|--:|--:|--:|--:|"]
    for name, taken, rate, ratio in rows(report):
        times = report["seconds"][name]
        lines.append(
            f"| {name} | {taken:.2f} | {rate:.1f} | {report['tokens'] / taken:.0f} | {ratio:.1f} "
            f"| {min(times):.2f} to {max(times):.2f} |"
        )
    return "\n".join([*lines, "", *(f"{name}: {value:.2f}" for name, value in report["claims"].items())])


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars: how many times the pipeline's rate, fastest on top, ours highlighted."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is set)

    mpl.rcParams.update({"font.size": 12, "svg.fonttype": "path", "svg.hashsalt": "xnli"})
    shown = rows(report)
    names = [name if batch is None else f"{name}, batches of {batch}" for name, batch in _batched(report, shown)]
    colours = ["#d9dee7" if ROOFLINE in name else "#1d4ed8" if _is_ours(name) else "#94a3b8" for name, *_ in shown]
    figure, axes = plt.subplots(figsize=(10, 0.4 * len(shown) + 1), layout="constrained")
    bars = axes.barh(names, [ratio for *_, ratio in shown], color=colours, height=0.72)
    axes.bar_label(bars, [f"{ratio:.1f}x   {rate:.0f} pairs/s" for _, _, rate, ratio in shown], padding=4, fontsize=11)
    for label, (name, *_) in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if _is_ours(name) else "normal")
    machine = report["machine"]
    figure.suptitle(
        "Times the rate of transformers' zero-shot pipeline\n"
        f"{report['shape']} shape, {report['pairs']} pairs, 2 to 12 labels a message, threads: {machine['threads']}",
        fontsize=12,
        x=0.01,
        ha="left",
    )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.margins(x=0.3, y=0.01)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _is_ours(name: str) -> bool:
    return name.startswith("ours")


def _batched(report: dict[str, Any], shown: Sequence[tuple[str, float, float, float]]) -> list[tuple[str, int | None]]:
    """Names with the batch size that measured best, of the peers that had a choice."""
    sizes = report["batch_sizes"]
    return [(name, sizes[name] if sizes.get(name, 1) > 1 else None) for name, *_ in shown]


def machine(device: torch.device) -> dict[str, str | int]:
    """Where and with what it is measured: device, processor, threads, and the versions of `PACKAGES` that are there."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES if _is_there(package)}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": device_name(device),
        "processor": processor or platform.processor(),
        "fast_formats": str(Processor.probe()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def _is_there(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def note(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
