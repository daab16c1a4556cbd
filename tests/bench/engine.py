"""The engine against what a user would run instead, on the same pairs, taking turns. Prints a table; ends with JSON.

``python -m tests.bench.engine --shape base --out bench/`` also draws ``bench.png``. Peers that are not installed are
left out (``pip install sentence-transformers onnxruntime onnx openvino matplotlib`` has them all). Nothing else should
run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
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
from worker import bench
from worker.inference.checkpoint import load
from worker.inference.engine import Engine
from worker.inference.precision import Processor
from worker.messages import Request

BATCHES = (8, 32, 128)  # sizes a peer may choose from
FLOOR = "GEMM floor"
PIPELINE = "pipeline, default"


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
    Peer("pipeline, batched fp32", "transformers", partial(peers.pipeline, dtype=torch.float32), (12,), cuda=True),
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
    parser.add_argument("--shape", choices=bench.SHAPES, default="base")
    parser.add_argument("--messages", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", action="append", help="only subjects whose name contains this; may be given again")
    parser.add_argument("--out", type=Path, help="directory for bench.json and bench.png")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as directory:
        report = measure(arguments, bench.make_checkpoint(bench.SHAPES[arguments.shape], Path(directory)))
    print(table(report))
    if arguments.out is None:
        print(json.dumps(report))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if peers.installed("matplotlib"):
        draw(report, arguments.out / "bench.png")


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All subjects in turns, then the engine's own claims."""
    requests = bench.workload(arguments.messages)
    wanted = [*(arguments.only or [""])]
    device = torch.device(arguments.device)
    precisions = [precision for precision in ours(device) if chosen(f"ours {precision}", wanted)]
    engines = {precision: open_engine(directory, device, precision) for precision in precisions}
    subjects: dict[str, Callable[[], None]] = {
        f"ours {precision}": partial(bench.answer, engine, requests) for precision, engine in engines.items()
    }
    pairs, tokens = bench.sizes(next(iter(engines.values())), requests)
    for precision in ("fp32", "bf16"):
        if chosen(f"{FLOOR} {precision}", wanted):
            checkpoint = load(str(directory), device=str(device), precision=precision, self_test="off", progress=False)
            subjects[f"{FLOOR} {precision}"] = bench.floor(checkpoint, tokens)
    sizes: dict[str, int] = {}
    for peer in PEERS:
        if chosen(peer.name, wanted) and peers.installed(peer.package) and (peer.cuda or device.type == "cpu"):
            sizes[peer.name], subjects[peer.name] = tune(peer, directory, device, requests)
    note(f"{pairs} pairs, {tokens} tokens; {len(subjects)} subjects")
    seconds = bench.alternate(subjects, runs=arguments.runs)
    return {
        "shape": arguments.shape,
        "messages": arguments.messages,
        "pairs": pairs,
        "tokens": tokens,
        "seconds": seconds,
        "batch_sizes": sizes,
        "claims": claims(next(reversed(engines.values())), arguments.messages, arguments.runs),
        "machine": machine(device, arguments.threads),
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
    engine = Engine(checkpoint, max_tokens=16384)
    engine.warm_up()
    return engine


def tune(
    peer: Peer, directory: Path, device: torch.device, requests: Sequence[Request]
) -> tuple[int, Callable[[], None]]:
    """The peer at its best batch size."""
    options = {"device": str(device)} if peer.cuda else {}
    made = {batch: peer.make(directory, requests, batch=batch, **options) for batch in peer.batches}
    if len(made) > 1:
        seconds = bench.alternate({str(batch): run for batch, run in made.items()}, runs=1)
        best = int(min(seconds, key=lambda batch: seconds[batch][0]))
    else:
        (best,) = made
    note(f"{peer.name}: batches of {best}")
    return best, made[best]


def claims(engine: Engine, messages: int, runs: int) -> dict[str, float]:
    """Ratios: half the pairs repeated against none; and the time per label of many labels against that of two."""
    once = bench.workload(messages)
    twice = [request for request in once[: messages // 2] for _ in range(2)]
    single = once[: messages // 2]
    few, many = (bench.workload(8, labels=(n, n), seed=1) for n in (2, 20))
    seconds = bench.alternate(
        {
            name: partial(bench.answer, engine, requests)
            for name, requests in {"twice": twice, "single": single, "few": few, "many": many}.items()
        },
        runs=runs,
    )
    middle = {name: bench.median(times) for name, times in seconds.items()}
    return {
        "half_repeated": middle["twice"] / (2 * middle["single"]),
        "time_per_label_20_over_2": middle["many"] / 10 / middle["few"],
    }


def machine(device: torch.device, threads: int) -> dict[str, str | int]:
    """Where and with what it was measured."""
    versions = {}
    for package in ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.processor(),
        "threads": threads,
        "flags": str(Processor.probe()),
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **versions,
    }


def rows(report: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Name, median seconds, pairs a second, and times the pipeline's default; slowest first."""
    middle = {name: bench.median(times) for name, times in report["seconds"].items()}
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
    """Bars of pairs a second."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is set)

    shown = rows(report)
    colours = [
        "#b0b7c3" if FLOOR in name else "#2563eb" if name.startswith("ours") else "#94a3b8" for name, *_ in shown
    ]
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(shown) + 1), layout="constrained")
    bars = axes.barh([name for name, *_ in shown], [rate for _, _, rate, _ in shown], color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_xlabel("premise-hypothesis pairs a second (more is better)")
    axes.set_title(
        f"{report['shape']} shape, {report['machine']['threads']} cores, {report['pairs']} pairs", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=150)


def note(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
