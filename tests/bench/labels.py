"""What a taxonomy and evidence cost against flat scoring, in pairs and in seconds, in alternating runs.

    python -m tests.bench.labels [--checkpoint DIR | --shape small] [--messages 4] [--runs 5] [--out labels.json]

All subjects answer the same texts of `SENTENCES` sentences each, in one batch, with the worker's own tokenising and
scoring:

- ``flat``: the `LEAVES` leaves of a tree, each text against each of them;
- ``tree, beam B``: the same leaves below their parents in three levels, labels that compete;
- ``few``: `FEW` labels, each by itself, of which the best is returned;
- ``few, evidence N``: the same, with N spans for it.

Each run takes every subject once, so a ratio compares times of the same moment; told are the medians of the ratios. A
line of JSON follows the table. With a model of random weights (the default) the pairs of a tree are those of any model;
how far evidence is narrowed down depends on what the model says, so take one that was trained for that:
``--checkpoint worker/demo/checkpoint``, which is small: most of its time is the host's. Nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.bench.engine import machine, ours
from tests.builders import classify
from worker.commands.bench import MAX_TOKENS, alternating_runs
from worker.commands.workload import DEMO_CHECKPOINT, LABELS, SHAPES, TEMPLATE, make_checkpoint, workload
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.messages import Request, Taxonomy, Work

WIDTHS = (5, 6, 10)  # children at each level
LEAVES = 300
SENTENCES = 12
FEW = 8
BEAMS = (1, 3)
SPANS = (1, 3)


def texts(messages: int) -> list[str]:
    """Sentences of some ten words each."""
    words = " ".join(request.text for request in workload(messages * SENTENCES)).split()
    sentences = [" ".join(words[at : at + 10]).replace(".", "") + "." for at in range(0, len(words) - 10, 10)]
    return [" ".join(sentences[at * SENTENCES : (at + 1) * SENTENCES]) for at in range(messages)]


def tree() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of a tree's nodes, level by level, and their parents."""
    names: list[str] = []
    parents: list[int] = []
    above = [-1]
    for width in WIDTHS:
        level = range(len(names), len(names) + len(above) * width)
        parents += [parent for parent in above for _ in range(width)]
        names += [f"{LABELS[node % len(LABELS)]} {node // len(LABELS)}" for node in level]
        above = list(level)
    return tuple(names), tuple(parents)


def subjects(messages: int) -> dict[str, list[Request]]:
    """The requests of each subject."""
    given = texts(messages)
    names, parents = tree()
    leaves = names[-LEAVES:]
    few = [classify(text, *LABELS[:FEW], template=TEMPLATE, multi_label=True, top_k=1) for text in given]
    made = {"flat": [classify(text, *leaves, template=TEMPLATE) for text in given]}
    for beam in BEAMS:
        taxonomy = Taxonomy(parents, beam)
        made[f"tree, beam {beam}"] = [classify(text, *names, template=TEMPLATE, taxonomy=taxonomy) for text in given]
    made["few"] = few
    for spans in SPANS:
        made[f"few, evidence {spans}"] = [replace(request, evidence=spans) for request in few]
    return made


def measure(engine: Engine, messages: int, runs: int) -> dict[str, Any]:
    """Pairs, tokens and seconds of each subject, and their ratios to flat scoring of the same."""
    made = subjects(messages)
    works: dict[str, Work] = {}

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            works[name] = engine.run([(request, engine.encode(request)) for request in made[name]])[1]

        return once

    seconds = alternating_runs({name: run(name) for name in made}, runs=runs)
    found: dict[str, Any] = {}
    for name in made:
        base = "few" if name.startswith("few") else "flat"
        ratios = [one / other for one, other in zip(seconds[name], seconds[base], strict=True)]
        found[name] = {
            "pairs": works[name].rows / messages,
            "tokens": works[name].tokens / messages,
            "forwards": works[name].forwards,
            "seconds": [taken_s / messages for taken_s in seconds[name]],
            "pairs_ratio": works[name].rows / works[base].rows,
            "tokens_ratio": works[name].tokens / works[base].tokens,
            "seconds_ratio": statistics.median(ratios),
            "noise": (max(ratios) - min(ratios)) / statistics.median(ratios),
        }
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a line a subject, for one message."""
    lines = ["| | pairs | tokens | ms | pairs, ratio | tokens, ratio | time, ratio | noise |", "|---|" + "--:|" * 7]
    for name, figures in found.items():
        taken_ms = statistics.median(figures["seconds"]) * 1e3
        lines.append(
            f"| {name} | {figures['pairs']:.1f} | {figures['tokens']:,.0f} | {taken_ms:.1f} "
            f"| {figures['pairs_ratio']:.3f} | {figures['tokens_ratio']:.3f} | {figures['seconds_ratio']:.3f} "
            f"| {figures['noise']:.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help=f"for instance {DEMO_CHECKPOINT.name}")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of a model with random weights")
    parser.add_argument("--messages", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the JSON, in place of stdout")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.checkpoint or make_checkpoint(SHAPES[arguments.shape], Path(folder))
        precision = [name for name in ours(device) if name != "int8"][-1]
        checkpoint = load(str(directory), device=str(device), precision=precision, self_test="off", progress=False)
        found = measure(Engine(checkpoint, max_tokens=MAX_TOKENS), arguments.messages, arguments.runs)
    model = str(arguments.checkpoint or arguments.shape)
    report = {"model": model, "precision": precision, "subjects": found, "machine": machine(device)}
    print(table(found))
    if arguments.out is None:
        print(json.dumps(report))
    else:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
