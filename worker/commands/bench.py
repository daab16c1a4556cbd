"""`xnli-worker bench`: how fast this machine answers, next to transformers' pipeline and to the bare matrix products.

The engine's part needs torch and transformers alone, so that it also runs on a GPU box that has nothing else; with
``kafka`` the whole worker takes part too (`worker.commands.loopback`).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from worker import __version__
from worker import bench as workbench
from worker.errors import CheckpointError
from worker.inference.engine import Engine
from worker.inference.forwards import encoder
from worker.inference.loading import load
from worker.inference.model import Checkpoint

ENGINE: Final = "engine"
WORKER: Final = "whole worker"
PIPELINE: Final = "transformers' pipeline"
FLOOR: Final = "matrix products alone"

# Where the number of messages is not given: as many as the engine answers in about so long.
_ROUND_S: Final = 1.0
_PROBE: Final = 16
_MOST_MESSAGES: Final = 4096


@dataclass(frozen=True, slots=True)
class Model:
    """What to measure: how to name it, arguments of `worker.inference.loading.load`, and the token budget."""

    shown: str
    name: str
    arguments: dict[str, Any]
    max_tokens: int = workbench.MAX_TOKENS


def bench(
    config: Path | None,
    *,
    shape: str | None,
    device: str | None,
    precision: str | None,
    threads: int | None,
    messages: int | None,
    runs: int,
    peer: bool,
    kafka: bool,
    as_json: bool,
) -> None:
    """Measure, and print a table on a terminal, JSON otherwise.

    Args:
        config: TOML file that names the model; without it, and without the environment's ``XNLI_MODEL__NAME``, the
            demo's checkpoint.
        shape: a name in `worker.bench.SHAPES`, to measure random weights of that shape. No setting is read then.
        device: in place of the settings' ``model.device``.
        precision: in place of the settings' ``model.precision``.
        threads: of torch on the CPU; None: torch's own choice.
        messages: how many a run answers; None: as many as the engine answers in about a second.
        runs: timed runs of each subject.
        peer: whether to run transformers' pipeline, which takes most of the time.
        kafka: whether to run the whole worker over the embedded broker too.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: wrong settings, or a checkpoint that cannot be loaded or does not classify.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers'
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as scratch, _progress(console) as progress:
        bar = progress.add_task("loading", total=None)
        model = _random(shape, Path(scratch)) if shape is not None else _configured(config)
        given = {name: value for name, value in (("device", device), ("precision", precision)) if value is not None}
        report = _measure(
            replace(model, arguments=model.arguments | given),
            messages,
            runs,
            peer=peer,
            kafka=kafka,
            on_progress=partial(progress.update, bar),
        )
    if as_json or not sys.stdout.isatty():
        print(json.dumps(report))  # noqa: T201 (this is the command's output)
    else:
        _print_table(Console(), report)


def _random(shape: str, scratch: Path) -> Model:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    name = str(workbench.make_checkpoint(workbench.SHAPES[shape], scratch / shape))
    return Model(f"random weights of {shape} shape", name, {})


def _configured(config: Path | None) -> Model:
    from worker import settings  # noqa: PLC0415 (its libraries need not be there to measure a shape)

    presets = {"kafka": {"bootstrap_servers": "none"}, "model": {"name": str(workbench.DEMO_CHECKPOINT)}}
    loaded = settings.load(config, defaults=presets)
    model = loaded.model
    arguments = {
        "revision": model.revision,
        "device": model.device,
        "precision": model.precision,
        "max_length": model.max_length,
        "labels": model.labels,
        "default_language": model.default_language,
    }
    return Model(model.name, model.name, arguments, loaded.batch.max_tokens)


def _measure(
    model: Model, messages: int | None, runs: int, *, peer: bool, kafka: bool, on_progress: Callable[..., None]
) -> dict[str, Any]:
    # The self-test asks for the right answers; here they do not matter.
    checkpoint = load(model.name, **model.arguments, self_test="off")
    if checkpoint.order is None:
        raise CheckpointError(f"{model.name} does not classify: name a checkpoint that was fine-tuned on NLI")
    engine = Engine(checkpoint, max_tokens=model.max_tokens)
    engine.warm_up()
    requests = workbench.workload(messages or _enough(engine))
    work = workbench.answer(engine, requests)
    tokens = sum(done.tokens for done in work)
    subjects: dict[str, Callable[[], object]] = {ENGINE: partial(workbench.answer, engine, requests)}
    if encoder.supports(checkpoint):
        subjects[FLOOR] = workbench.floor(checkpoint, tokens)
    if peer:
        directory = Path(str(checkpoint.model.name_or_path))  # where its files lie, a hub's too
        subjects[PIPELINE] = workbench.zero_shot_pipeline(directory, requests, device=str(checkpoint.device))
    with _loopback(engine) if kafka else nullcontext() as worker:
        if worker is not None:
            subjects[WORKER] = partial(worker.answer, requests)
        on_progress(description="measuring", total=len(subjects) * (runs + 1))
        seconds = workbench.alternate(subjects, runs=runs, done=partial(on_progress, advance=1))
    pairs = sum(done.rows for done in work)
    return {
        "model": {"name": model.shown, "revision": checkpoint.identity.revision},
        "workload": {"messages": len(requests), "pairs": pairs, "tokens": tokens},
        "padding_share": 1 - tokens / sum(done.slots for done in work),
        "subjects": {
            name: {
                "seconds": times,
                "median_s": workbench.median(times),
                "messages_per_s": len(requests) / workbench.median(times),
                "pairs_per_s": pairs / workbench.median(times),
                "tokens_per_s": tokens / workbench.median(times),
                "engine_is_faster_by": workbench.median(times) / workbench.median(seconds[ENGINE]),
            }
            for name, times in seconds.items()
        },
        "machine": _machine(checkpoint),
    }


def _enough(engine: Engine) -> int:
    """How many messages take about a second: a power of two, so that the next run likely takes as many."""
    probe = workbench.workload(_PROBE)
    workbench.answer(engine, probe)  # the first run of new shapes is slower
    began_s = time.perf_counter()
    workbench.answer(engine, probe)
    count = _PROBE
    while count < _MOST_MESSAGES and (time.perf_counter() - began_s) * count / _PROBE < _ROUND_S:
        count *= 2
    return count


def _loopback(engine: Engine) -> AbstractContextManager[Any]:
    from worker.commands.loopback import Loopback  # noqa: PLC0415 (Kafka's libraries need not be there otherwise)

    return Loopback(engine)


def _machine(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "precision": checkpoint.precision.value,
        **workbench.machine(checkpoint.device),
        "xnli-worker": __version__,
    }


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _print_table(console: Console, report: dict[str, Any]) -> None:
    machine, workload, subjects = report["machine"], report["workload"], report["subjects"]
    table = Table(title=f"{report['model']['name']} on {machine['device']} in {machine['precision']}")
    table.add_column("")
    for heading in ("messages/s", "pairs/s", "tokens/s", "engine is faster by", "slowest to fastest run"):
        table.add_column(heading, justify="right")
    for name, figures in sorted(subjects.items(), key=lambda item: -item[1]["median_s"]):
        rates = [workload[unit] / figures["median_s"] for unit in ("messages", "pairs", "tokens")]
        times = [f"{seconds:.3g} s" for seconds in (max(figures["seconds"]), min(figures["seconds"]))]
        table.add_row(
            name,
            *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates),
            "" if name == ENGINE else f"{figures['engine_is_faster_by']:.2f}x",
            " to ".join(times),
            style="bold green" if name == ENGINE else "dim" if name == FLOOR else None,
        )
    console.print(table)
    console.print(
        f"{workload['messages']} messages with 2 to 12 labels each: {workload['pairs']} pairs, {workload['tokens']} "
        f"tokens, {report['padding_share']:.1%} padding",
        style="dim",
    )
    if FLOOR in subjects:
        share = subjects[FLOOR]["engine_is_faster_by"]
        console.print(f"the engine runs at {share:.0%} of what the model's matrix products alone would allow here")
    left_out = {"device", "precision"}
    console.print(
        ", ".join(f"{name} {value}" for name, value in machine.items() if name not in left_out and value),
        style="dim",
        markup=False,
    )
