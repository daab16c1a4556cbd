"""Prints the README's table: how far scores are from transformers in fp32, by family, task and precision.

``python -m tests.golden.precision [CHECKPOINT_DIRECTORY ...]`` (JSON with ``--json``; only those directories with
``--only``). Every family as a tiny checkpoint of large random weights, and the demo's trained one: a difference is the
largest over the workload's messages, of a label's score, of a probability, or of a component of a normalised embedding.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import worker.demo
from tests import families
from tests.golden import workload
from tests.golden.reference import Reference
from worker.inference.engine import Engine
from worker.inference.forwards import families as forwards
from worker.inference.loading import load
from worker.inference.precision import Precision, Processor
from worker.inference.scores import softmax
from worker.messages import Classification, Embedding, Entailment, Outcome, Pooling, Request, Task

BOUNDS = {
    Precision.FP32: 1e-5,
    Precision.BF16: 0.02,
    Precision.FP16: 0.02,
    Precision.INT8: 0.05,
    Precision.INT4: 0.25,
}
DEMO = Path(worker.demo.__file__).with_name("checkpoint")
TEXTS = [*workload.TEXTS.values(), workload.LONG]
REQUESTS: dict[str, list[Request]] = {
    "classify": [workload.classify(text, workload.LABELS[: 2 + i % 11]) for i, text in enumerate(TEXTS)],
    "classify, multi-label": [workload.classify(text, workload.LABELS[:5], multi_label=True) for text in TEXTS],
    "entail": [workload.entail(text, *workload.TEMPLATES, "This is about a parcel.") for text in TEXTS],
    "embed": [workload.embed(text, pooling, normalize=True) for text in TEXTS for pooling in Pooling],
}


def precisions(device: torch.device) -> list[Precision]:
    """Those that this device is served in."""
    if device.type == "cuda":
        return [Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT4]
    int8 = [Precision.INT8] if Processor.probe().vnni else []
    return [Precision.FP32, Precision.BF16, *int8, Precision.INT4]


def expected(reference: Reference, request: Request, entailment: int, contradiction: int) -> list[float]:
    """What transformers' model says in fp32, in the order that `numbers` has."""
    if request.task is Task.EMBED:
        states = reference.states(request.text, request.language).astype(np.float64)
        vector = states[0] if request.pooling is Pooling.CLS else states.mean(axis=0)
        return [float(n) for n in vector / np.linalg.norm(vector)]
    logits = np.stack(
        [reference.logits(request.text, hypothesis, request.language) for hypothesis in request.hypotheses]
    ).astype(np.float64)
    if request.task is Task.ENTAIL:
        return [float(n) for n in softmax(logits)[:, entailment]]
    if request.multi_label or len(request.labels) == 1:
        return [1 / (1 + math.exp(row[contradiction] - row[entailment])) for row in logits]
    return [float(n) for n in softmax(logits[:, entailment])]


def numbers(request: Request, outcome: Outcome) -> list[float]:
    """The numbers of an outcome in the order of the request's labels."""
    match outcome:
        case Classification():
            scores = {label.label: label.score for label in outcome.labels}
            return [scores[label] for label in request.labels]
        case Entailment():
            return [judged.entailment for judged in outcome.judgements]
        case Embedding():
            return [float(n) for n in outcome.vector]


def measure(name: str, directory: Path) -> Iterator[dict[str, str | float]]:
    """One entry per task and precision."""
    reference = Reference(directory)
    right: dict[str, list[list[float]]] = {}
    for precision in precisions(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        checkpoint = load(
            str(directory),
            precision=precision,
            max_length=512,
            self_test="off",
            default_language="en",
            progress=False,
        )
        order = checkpoint.order
        if order is None:
            raise SystemExit(f"{directory} has no classification head")
        engine = Engine(checkpoint, max_tokens=4096)
        for task, requests in REQUESTS.items():
            if task not in right:
                right[task] = [expected(reference, r, order.entailment, order.contradiction) for r in requests]
            outcomes, _ = engine.run([(request, engine.encode(request)) for request in requests])
            ours = [numbers(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]
            furthest = max(
                abs(a - b) for x, y in zip(ours, right[task], strict=True) for a, b in zip(x, y, strict=True)
            )
            yield {
                "checkpoint": name,
                "forward": "packed" if forwards.is_packed(checkpoint.model.config) else "padded",
                "task": task,
                "precision": str(precision),
                "difference": furthest,
                "bound": BOUNDS[precision],
            }


def table(entries: list[dict[str, str | float]]) -> str:
    """Markdown: a line per checkpoint and task, a column per precision."""
    columns = list(dict.fromkeys(str(entry["precision"]) for entry in entries))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for entry in entries:
        line = lines.setdefault((str(entry["checkpoint"]), str(entry["forward"]), str(entry["task"])), {})
        mark = "" if float(entry["difference"]) <= float(entry["bound"]) else " **over**"
        line[str(entry["precision"])] = f"{entry['difference']:.1e}{mark}"
    head = [f"| checkpoint | forward | task | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    return "\n".join(head + [f"| {' | '.join(key)} | {' | '.join(line.values())} |" for key, line in lines.items()])


def main() -> None:
    """Measure and print. Exit code 1 if a difference is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--only", action="store_true", help="only the directories given")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    checkpoints = {directory.name: directory for directory in arguments.directories}
    if not arguments.only:
        checkpoints |= {f"{family} (random)": families.checkpoint(family) for family in families.FAMILIES}
        checkpoints |= {"demo (trained)": DEMO}
    entries = [entry for name, directory in checkpoints.items() for entry in measure(name, directory)]
    print(json.dumps(entries, indent=1) if arguments.json else table(entries))  # noqa: T201 (a command)
    if any(float(entry["difference"]) > float(entry["bound"]) for entry in entries):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
