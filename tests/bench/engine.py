"""The engine against what a user would run instead, on the same pairs, in alternating runs: one table for each family.

``python -m tests.bench.engine --family bart --family deberta`` (``all`` for every one). Tables and JSON go to stdout;
with ``--out DIRECTORY`` to ``bench.md`` and ``bench.json`` there. ``python -m tests.bench.engine --device cuda`` is
all that a GPU needs: four families of large shape, in ``tests/bench/report``. ``--plot bench.svg`` draws a chart of the
first family; ``--from bench.json`` shows an earlier run's, measuring nothing.

Peers that are not installed are left out (``pip install xnli-worker[peers]`` has them all); one that cannot run a
family is named under its table. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import peers
from worker.commands.bench import MAX_TOKENS, alternating_runs, device_name
from worker.commands.roofline import products, roofline
from worker.commands.workload import FAMILIES, SHAPES, answer, make_checkpoint, workload
from worker.inference.engine import Engine
from worker.inference.forwards import attention, families
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.precision import Processor
from worker.messages import Request

BATCHES = (8, 32, 128)  # sizes a peer may choose from
ROOFLINE = "bare products"
PADDED = "padded"  # the engine with transformers' own model in its packed forward's place
PIPELINE = "pipeline, default"
LABELS = (2, 4, 8, 16, 32, 64)
PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "flash-attn")
ON_CUDA = ("xlm-roberta", "bart", "deberta", "modernbert")
REPORT = Path(__file__).with_name("report")
GEMM = 8192  # rows and columns of the matrices whose product is the measure of a GPU


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's name, the package it needs, how to make it, and the batch sizes it may choose from."""

    name: str
    package: str
    make: Callable[..., Callable[[], None]]
    batches: tuple[int, ...] = BATCHES
    cpu: bool = True  # whether it is measured there
    cuda: bool = False


PEERS = (
    Peer(PIPELINE, "transformers", partial(peers.pipeline, dtype=torch.float32), (1,), cuda=True),
    Peer("pipeline fp32", "transformers", partial(peers.pipeline, dtype=torch.float32), (12,), cuda=True),
    Peer("CrossEncoder fp32", "sentence_transformers", partial(peers.cross_encoder, dtype=torch.float32), cuda=True),
    Peer("CrossEncoder bf16", "sentence_transformers", partial(peers.cross_encoder, dtype=torch.bfloat16), cuda=True),
    Peer(
        "CrossEncoder fp16",
        "sentence_transformers",
        partial(peers.cross_encoder, dtype=torch.float16),
        cpu=False,
        cuda=True,
    ),
    Peer("ONNX Runtime fp32", "onnxruntime", partial(peers.onnx_runtime, int8=False)),
    Peer("ONNX Runtime int8", "onnxruntime", partial(peers.onnx_runtime, int8=True)),
    Peer("OpenVINO fp32", "openvino", partial(peers.openvino, precision="f32")),
    Peer("OpenVINO bf16", "openvino", partial(peers.openvino, precision="bf16")),
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=[*FAMILIES, "all"], help="may be given again")
    parser.add_argument("--shape", choices=SHAPES, help="base; on CUDA large")
    parser.add_argument("--messages", type=int, help="48; on CUDA 1024")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", action="append", help="only subjects whose name contains this; may be given again")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="for bench.md and bench.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a bar chart; PNG or SVG by its ending")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="JSON", help="show this run's, measure nothing")
    arguments = parser.parse_args()
    if arguments.earlier is not None:
        show(json.loads(arguments.earlier.read_text(encoding="utf-8")), arguments)
        return
    device = torch.device(arguments.device)
    cuda = device.type == "cuda"
    arguments.shape = arguments.shape or ("large" if cuda else "base")
    arguments.messages = arguments.messages or (1024 if cuda else 48)
    arguments.out = arguments.out or (REPORT if cuda else None)
    wanted = arguments.family or (ON_CUDA if cuda else ("xlm-roberta",))
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "shape": arguments.shape,
        "messages": arguments.messages,
        "machine": {"date": dt.datetime.now(dt.UTC).date().isoformat(), **machine(device)},
        "families": {},
    }
    for family in FAMILIES if "all" in wanted else wanted:
        with tempfile.TemporaryDirectory(prefix="xnli-bench-") as directory, progress(family) as step:
            made = make_checkpoint(SHAPES[arguments.shape], Path(directory), family)
            report["families"][family] = measure(arguments, made, step)
        if arguments.out is not None:
            write(report, arguments.out)  # so that what is measured is kept if a later family fails
    show(report, arguments)


def write(report: dict[str, Any], directory: Path) -> None:
    """The tables as Markdown, and everything as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (directory / "bench.md").write_text(tables(report) + "\n", encoding="utf-8")


def show(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the tables, and JSON where it is kept in no file, and draw."""
    print(tables(report))
    if arguments.out is None and arguments.earlier is None:
        print(json.dumps(report))
    if arguments.plot is not None:
        draw(report, next(iter(report["families"])), arguments.plot)


@contextmanager
def progress(family: str) -> Iterator[Callable[[str, int], None]]:
    """Shows which step of how many is under way: a bar on a terminal, a line a step elsewhere. Both on stderr.

    The function is called with a step's name, and with how many steps are known to follow it.
    """
    if not sys.stderr.isatty():
        yield lambda name, _following: note(f"{family}: {name}")
        return
    columns = (
        TextColumn(family),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # It is drawn between steps only: a thread that draws would take its time from what is measured.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bars:
        task, done = bars.add_task("making the checkpoint", total=None), 0

        def step(name: str, following: int) -> None:
            nonlocal done
            bars.update(task, completed=done, total=done + following + 1, description=name, refresh=True)
            done += 1

        yield step


def rounds(
    subjects: dict[str, Callable[[], object]], step: Callable[[str, int], None], *, runs: int, what: str = ""
) -> dict[str, list[float]]:
    """`alternating_runs`, shown as they go on."""
    left = (runs + 1) * len(subjects)

    def before(name: str) -> None:
        nonlocal left
        left -= 1
        step(what + name, left)

    return alternating_runs(subjects, runs=runs, before=before)


def measure(arguments: argparse.Namespace, directory: Path, step: Callable[[str, int], None]) -> dict[str, Any]:
    """All subjects in alternating runs, then the engine's own claims."""
    requests = workload(arguments.messages)
    wanted = [*(arguments.only or [""])]
    device = torch.device(arguments.device)
    checkpoints = {
        precision: open_checkpoint(directory, device, precision)
        for precision in ours(device)
        if any(chosen(f"{what} {precision}", wanted) for what in ("ours", PADDED, ROOFLINE))
    }
    engines = {precision: _warm(checkpoint) for precision, checkpoint in checkpoints.items()}
    subjects: dict[str, Callable[[], object]] = {
        f"ours {precision}": partial(answer, engine, requests)
        for precision, engine in engines.items()
        if chosen(f"ours {precision}", wanted)
    }
    work = answer(next(iter(engines.values())), requests)
    pairs, tokens = sum(done.computed for done in work), sum(done.tokens for done in work)
    a_checkpoint = next(iter(checkpoints.values()))
    packed = families.is_packed(a_checkpoint.model.config)
    for precision, checkpoint in checkpoints.items():
        if packed and precision != "int8" and chosen(f"{ROOFLINE} {precision}", wanted):
            subjects[f"{ROOFLINE} {precision}"] = roofline(checkpoint, tokens)
        if packed and precision != "int8" and chosen(f"{PADDED} {precision}", wanted):
            engine = Engine(checkpoint, max_tokens=MAX_TOKENS, forward=Padded(checkpoint))
            subjects[f"{PADDED} {precision}"] = partial(answer, engine, requests)
        if packed and device.type == "cuda" and precision != "fp32" and peers.installed("flash_attn"):
            subjects[f"ours {precision}, flash-attn"] = with_flash_attn(engines[precision], requests)
    sizes: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for peer in PEERS:
        if not (chosen(peer.name, wanted) and peers.installed(peer.package)):
            continue
        if not (peer.cuda if device.type == "cuda" else peer.cpu):
            continue
        try:
            sizes[peer.name], subjects[peer.name] = tune(peer, directory, device, requests, step)
        except Exception as error:  # noqa: BLE001 (whatever keeps a peer from running this family is named in the report)
            left_out[peer.name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    seconds = rounds(subjects, step, runs=arguments.runs)
    return {
        "pairs": pairs,
        "tokens": tokens,
        "forward": "packed" if packed else "padded",
        "auto": str(
            load(str(directory), device=str(device), self_test="off", progress=False, default_language="en").precision
        ),
        "seconds": seconds,
        "batch_sizes": sizes,
        "left_out": left_out,
        "flops_per_token": 2 * sum(n * m for n, m in products(a_checkpoint)) if packed else None,
        "gemm_flops": {p: gemm_flops(device, c.model.dtype) for p, c in checkpoints.items() if device.type == "cuda"},
        "claims": claims(next(reversed(engines.values())), arguments.messages, arguments.runs, step),
    }


def gemm_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the product of two large square matrices: what the device reaches at best."""
    left, right = (torch.randn((GEMM, GEMM), dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)
        torch.cuda.synchronize(device)

    return 2 * GEMM**3 / statistics.median(alternating_runs({"": multiply}, runs=9)[""])


def with_flash_attn(engine: Engine, requests: Sequence[Request]) -> Callable[[], object]:
    """The same engine with the flash-attn wheel's kernel in the place of torch's."""
    import flash_attn  # noqa: PLC0415 (measured only where it is installed)

    def attend(query: Any, key: Any, value: Any, *bounds: Any, window_size: tuple[int, int], **_: Any) -> Any:
        return flash_attn.flash_attn_varlen_func(query, key, value, *bounds, window_size=window_size)

    def run() -> None:
        with mock.patch.object(attention, "varlen_attn", attend):
            answer(engine, requests)

    return run


def ours(device: torch.device) -> list[str]:
    """The precisions in which the engine is measured; the fastest on this device last."""
    if device.type != "cpu":
        return ["fp32", "fp16", "bf16"]
    processor = Processor.probe()
    return ["fp32", *(["int8"] if processor.vnni else []), *(["bf16"] if processor.amx_bf16 else [])]


def chosen(name: str, wanted: Sequence[str]) -> bool:
    """Whether --only names it."""
    return any(part in name for part in wanted)


def open_checkpoint(directory: Path, device: torch.device, precision: str) -> Checkpoint:
    """With the worker's default settings."""
    return load(
        str(directory), device=str(device), precision=precision, self_test="off", progress=False, default_language="en"
    )


def open_engine(directory: Path, device: torch.device, precision: str) -> Engine:
    """The engine with the worker's default settings, warm."""
    return _warm(open_checkpoint(directory, device, precision))


def _warm(checkpoint: Checkpoint) -> Engine:
    engine = Engine(checkpoint, max_tokens=MAX_TOKENS)
    engine.warm_up()
    return engine


def tune(
    peer: Peer, directory: Path, device: torch.device, requests: Sequence[Request], step: Callable[[str, int], None]
) -> tuple[int, Callable[[], None]]:
    """The peer at its best batch size."""
    step(f"opening {peer.name}", 0)
    options = {"device": str(device)} if peer.cuda else {}
    made = {batch: peer.make(directory, requests, batch=batch, **options) for batch in peer.batches}
    if len(made) > 1:
        seconds = rounds({str(b): run for b, run in made.items()}, step, runs=1, what=f"{peer.name}, batches of ")
        best = int(min(seconds, key=lambda batch: seconds[batch][0]))
    else:
        (best,) = made
        made[best]()  # what it cannot do shows here
    return best, made[best]


def claims(engine: Engine, messages: int, runs: int, step: Callable[[str, int], None]) -> dict[str, float]:
    """The time of a workload half of whose pairs are repeats, to that of as many distinct ones; and of label counts.

    The latter is the time of a pair at n labels a message to that at two, for the same texts: at most 1 is linear.
    """
    single = workload(messages // 2)
    subjects = {"single": single, "twice": [request for request in single for _ in range(2)]}
    subjects |= {str(n): workload(4, labels=(n, n), seed=1) for n in LABELS}
    seconds = rounds(
        {name: partial(answer, engine, requests) for name, requests in subjects.items()}, step, runs=runs, what="claim "
    )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "half_repeated": middle["twice"] / (2 * middle["single"]),
        **{f"time_per_pair_{n}_labels": middle[str(n)] / n / (middle[str(LABELS[0])] / LABELS[0]) for n in LABELS},
    }


def rows(family: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Name, median seconds, pairs a second, and times the pipeline's default; slowest first."""
    middle = {name: statistics.median(times) for name, times in family["seconds"].items()}
    base = middle.get(PIPELINE, float("nan"))
    return [
        (name, taken, family["pairs"] / taken, base / taken)
        for name, taken in sorted(middle.items(), key=lambda item: -item[1])
    ]


def tables(report: dict[str, Any]) -> str:
    """Markdown: a table a family, all with the same columns, and what it was measured on."""
    parts = [table(name, report["shape"], family) for name, family in report["families"].items()]
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n\n".join([*parts, f"{report['messages']} messages of 2 to 12 labels; {about}"])


def table(name: str, shape: str, family: dict[str, Any]) -> str:
    """A line a subject, and under it what was left out, and the claims."""
    head = ("batch", "s", "pairs/s", "tokens/s", "x pipeline", "of bare products", "of the GEMM peak", "noise")
    lines = [
        f"**{name}**, {shape} shape, {family['forward']}, auto is {family['auto']}, {family['pairs']} pairs",
        "",
        f"| | {' | '.join(head)} |",
        "|---|" + "--:|" * len(head),
    ]
    for subject, taken, rate, ratio in rows(family):
        times = family["seconds"][subject]
        cells = (
            family["batch_sizes"].get(subject, ""),
            f"{taken:.2f}",
            f"{rate:.1f}",
            f"{family['tokens'] / taken:.0f}",
            f"{ratio:.2f}",
            _share(family["seconds"].get(f"{ROOFLINE} {_precision(subject)}"), taken),
            _of_peak(family, subject, taken),
            f"{(max(times) - min(times)) / taken:.0%}",
        )
        lines.append(f"| {subject} | {' | '.join(map(str, cells))} |")
    lines += ["", *(f"left out: {peer}: {why}" for peer, why in family["left_out"].items())]
    return "\n".join([*lines, *(f"{claim}: {value:.2f}" for claim, value in family["claims"].items())])


def _precision(subject: str) -> str:
    """That in which a subject computes; the pipeline's default is that of the stored weights."""
    return next((p for p in ("bf16", "fp16", "int8") if p in subject), "fp32")


def _share(products_s: list[float] | None, taken_s: float) -> str:
    return "" if products_s is None else f"{statistics.median(products_s) / taken_s:.0%}"


def _of_peak(family: dict[str, Any], subject: str, taken_s: float) -> str:
    peak = family["gemm_flops"].get(_precision(subject))
    if peak is None or family["flops_per_token"] is None:
        return ""
    return f"{family['flops_per_token'] * family['tokens'] / taken_s / peak:.0%}"


def draw(report: dict[str, Any], name: str, path: Path) -> None:
    """Bars: how many times the pipeline's rate, fastest on top, ours highlighted."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is set)

    mpl.rcParams.update({"font.size": 12, "svg.fonttype": "path", "svg.hashsalt": "xnli"})
    family = report["families"][name]
    shown = rows(family)
    names = [who if batch is None else f"{who}, batches of {batch}" for who, batch in _batched(family, shown)]
    colours = ["#d9dee7" if ROOFLINE in who else "#1d4ed8" if _is_ours(who) else "#94a3b8" for who, *_ in shown]
    figure, axes = plt.subplots(figsize=(10, 0.4 * len(shown) + 1), layout="constrained")
    bars = axes.barh(names, [ratio for *_, ratio in shown], color=colours, height=0.72)
    axes.bar_label(bars, [f"{ratio:.1f}x   {rate:.0f} pairs/s" for _, _, rate, ratio in shown], padding=4, fontsize=11)
    for label, (who, *_) in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if _is_ours(who) else "normal")
    machine = report["machine"]
    figure.suptitle(
        "Times the rate of transformers' zero-shot pipeline\n"
        f"{name}, {report['shape']} shape, {family['pairs']} pairs, 2 to 12 labels, threads: {machine['threads']}",
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


def _batched(family: dict[str, Any], shown: Sequence[tuple[str, float, float, float]]) -> list[tuple[str, int | None]]:
    """Names with the batch size that measured best, of the peers that had a choice."""
    sizes = family["batch_sizes"]
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
        "commit": commit(),
    }


def commit() -> str:
    """Of the code that was measured, marked where the working tree differs; empty outside a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    described = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


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
