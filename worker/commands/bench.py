"""`xnli-worker bench`: how fast this machine answers, next to transformers' pipeline and to the bare matrix products.

The engine's part needs torch and transformers alone, so that it also runs on a GPU box that has nothing else. With
``kafka`` the whole worker takes part too (`worker.commands.loopback`). The programs of ``tests/bench`` measure with the
same workload, roofline and alternating runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import transformers
from rich.console import Console
from rich.table import Table

from worker import __version__
from worker.commands.roofline import roofline
from worker.commands.workload import DEMO_CHECKPOINT, SHAPES, TEMPLATE, answer, make_checkpoint, workload
from worker.errors import CheckpointError
from worker.inference.engine import Engine
from worker.inference.forwards import families
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.precision import Processor
from worker.messages import Pooling, Request

ENGINE: Final = "engine"
WORKER: Final = "whole worker"
PIPELINE: Final = "transformers' pipeline"
ROOFLINE: Final = "matrix products alone"

MAX_TOKENS: Final = 16384  # of a forward, as the settings have it by default
# Where the number of messages is not given: as many as the engine answers in about a second, within these.
_FEWEST_MESSAGES: Final = 16
_MOST_MESSAGES: Final = 4096


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
        shape: a name in `SHAPES`, to measure random weights of that shape. No setting is read then.
        device: in place of the settings' ``model.device``.
        precision: in place of the settings' ``model.precision``.
        threads: in place of the settings' ``model.threads``.
        messages: how many a run answers; None: as many as the engine answers in about a second.
        runs: timed runs of each subject.
        peer: whether to run transformers' pipeline, which takes most of the time.
        kafka: whether to run the whole worker over the embedded broker too.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: wrong settings, or a checkpoint that cannot be loaded or does not classify.
    """
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers'
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    chosen = {"device": device, "precision": precision, "threads": threads}
    given = {name: value for name, value in chosen.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as scratch, Console(stderr=True).status("measuring"):
        if shape is None:
            arguments, max_tokens = _configured(config)
            shown = arguments["name"]
        else:
            arguments = {"name": str(make_checkpoint(SHAPES[shape], Path(scratch) / shape))}
            shown, max_tokens = f"random weights of {shape} shape", MAX_TOKENS
        # The self-test asks for the right answers; here they do not matter, and nothing is embedded.
        checkpoint = load(**arguments | given, self_test="off", pooling=Pooling.MEAN)
        report = _measure(shown, checkpoint, max_tokens, messages, runs, peer=peer, kafka=kafka)
    if as_json or not sys.stdout.isatty():
        print(json.dumps(report))  # noqa: T201 (this is the command's output)
    else:
        _print_table(Console(), report)


def _configured(config: Path | None) -> tuple[dict[str, Any], int]:
    """The arguments of `worker.inference.loading.load` and the token budget, from the settings."""
    from worker import settings  # noqa: PLC0415 (its libraries need not be there to measure a shape)

    presets = {"kafka": {"bootstrap_servers": "none"}, "model": {"name": str(DEMO_CHECKPOINT)}}
    loaded = settings.load(config, defaults=presets)
    names = ("name", "revision", "device", "precision", "max_length", "labels", "threads")
    chosen = {name: getattr(loaded.model, name) for name in names} | {"default_language": loaded.model.fixed_language}
    return chosen, loaded.batch.max_tokens


def _measure(
    shown: str, checkpoint: Checkpoint, max_tokens: int, messages: int | None, runs: int, *, peer: bool, kafka: bool
) -> dict[str, Any]:
    if checkpoint.order is None:
        raise CheckpointError(f"{shown} does not classify: name a checkpoint that was fine-tuned on NLI")
    engine = Engine(checkpoint, max_tokens=max_tokens)
    engine.warm_up()
    requests = workload(messages or _second_of(engine))
    work = answer(engine, requests)
    pairs, tokens = sum(done.rows for done in work), sum(done.tokens for done in work)
    subjects: dict[str, Callable[[], object]] = {ENGINE: partial(answer, engine, requests)}
    if families.is_packed(checkpoint.model.config):
        subjects[ROOFLINE] = roofline(checkpoint, tokens)
    if peer:
        directory = Path(str(checkpoint.model.name_or_path))  # where its files lie, a hub's too
        subjects[PIPELINE] = zero_shot_pipeline(directory, requests, device=str(checkpoint.device))
    with ExitStack() as stack:
        if kafka:
            from worker.commands.loopback import loopback  # noqa: PLC0415 (Kafka's libraries may be absent otherwise)

            subjects[WORKER] = partial(stack.enter_context(loopback(engine)), requests)
        seconds = alternating_runs(subjects, runs=runs)
    middle = {name: median(times) for name, times in seconds.items()}
    return {
        "model": {"name": shown, "revision": checkpoint.identity.revision},
        "workload": {"messages": len(requests), "pairs": pairs, "tokens": tokens},
        "padding_share": 1 - tokens / sum(done.slots for done in work),
        "subjects": {
            name: {
                "seconds": seconds[name],
                "median_s": taken_s,
                "messages_per_s": len(requests) / taken_s,
                "pairs_per_s": pairs / taken_s,
                "tokens_per_s": tokens / taken_s,
                "engine_is_faster_by": taken_s / middle[ENGINE],
            }
            for name, taken_s in middle.items()
        },
        "machine": {
            "device": device_name(checkpoint.device),
            "precision": checkpoint.precision.value,
            "fast_formats": str(Processor.probe()),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "xnli-worker": __version__,
        },
    }


def _second_of(engine: Engine) -> int:
    """How many messages take about a second: a power of two, so that the next run likely takes as many."""
    probe = workload(_FEWEST_MESSAGES)
    answer(engine, probe)  # the first run of new shapes is slower
    began_s = time.perf_counter()
    answer(engine, probe)
    taken_s = time.perf_counter() - began_s
    count = _FEWEST_MESSAGES
    while count < _MOST_MESSAGES and taken_s * count / _FEWEST_MESSAGES < 1:
        count *= 2
    return count


def zero_shot_pipeline(
    directory: Path, requests: Sequence[Request], *, device: str, **options: Any
) -> Callable[[], None]:
    """What a user has without this worker: transformers' pipeline, one call a message, as each has its own labels.

    ``options`` are the pipeline's, such as ``batch_size`` and ``dtype``; its defaults are one pair a forward and the
    format that the weights are stored in.
    """
    make: Any = transformers.pipeline  # Any: its overloads do not know this task's pipeline
    pipe = make("zero-shot-classification", model=str(directory), device=device, **options)

    def run() -> None:
        for request in requests:
            pipe(request.text, list(request.labels), hypothesis_template=TEMPLATE)

    return run


def alternating_runs(
    subjects: Mapping[str, Callable[[], object]], *, runs: int, before: Callable[[str], None] = lambda _name: None
) -> dict[str, list[float]]:
    """Seconds that each subject took in each of ``runs`` rounds, after one round that is not timed.

    A round runs every subject once. A machine's speed drifts, and the subjects of one round meet the same machine.
    ``before`` is told each subject's name before it runs, outside the time that is taken.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(runs + 1):
        for name, subject in subjects.items():
            before(name)
            began_s = time.perf_counter()
            subject()
            seconds[name].append(time.perf_counter() - began_s)
    return {name: times[1:] for name, times in seconds.items()}


def device_name(device: torch.device) -> str:
    """The GPU's product name, or torch's name of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _print_table(console: Console, report: dict[str, Any]) -> None:
    machine, work, subjects = report["machine"], report["workload"], report["subjects"]
    table = Table(title=f"{report['model']['name']} on {machine['device']} in {machine['precision']}")
    table.add_column("")
    for heading in ("messages/s", "pairs/s", "tokens/s", "engine is faster by", "slowest to fastest run"):
        table.add_column(heading, justify="right")
    for name, figures in sorted(subjects.items(), key=lambda item: -item[1]["median_s"]):
        rates = [figures[f"{unit}_per_s"] for unit in ("messages", "pairs", "tokens")]
        table.add_row(
            name,
            *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates),
            "" if name == ENGINE else f"{figures['engine_is_faster_by']:.2f}x",
            f"{max(figures['seconds']):.3g} s to {min(figures['seconds']):.3g} s",
            style="bold green" if name == ENGINE else "dim" if name == ROOFLINE else None,
        )
    console.print(table)
    console.print(
        f"{work['messages']} messages with 2 to 12 labels each: {work['pairs']} pairs, {work['tokens']} "
        f"tokens, {report['padding_share']:.1%} padding",
        style="dim",
    )
    if ROOFLINE in subjects:
        share = subjects[ROOFLINE]["engine_is_faster_by"]
        console.print(f"the engine runs at {share:.0%} of what the model's matrix products alone would allow here")
    versions = {name: value for name, value in machine.items() if name not in {"device", "precision"} and value}
    console.print(", ".join(f"{name} {value}" for name, value in versions.items()), style="dim", markup=False)
