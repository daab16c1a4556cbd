"""Batches of EMBED alone, against sentence-transformers on the same texts, in alternating runs: a table a length.

    python -m tests.bench.embed [--family bert] [--shape base] [--length 16 --length 128] [--out embed.json]

Texts have exactly so many tokens, special ones included, as in text-embeddings-inference's published benchmark, whose
batches of 1 and of 32 are the default here too. A subject gets strings and gives normalised mean vectors; one call is
one batch. Both compute the same vectors, which is checked first. sentence-transformers is left out where it is not
installed (``pip install xnli-worker[peers]``). Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from tests.bench import peers
from tests.bench.engine import machine, ours, progress, rounds
from tests.builders import embed
from worker.commands.bench import MAX_TOKENS
from worker.commands.workload import FAMILIES, LABELS, SHAPES, make_checkpoint
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.precision import Precision, dtype
from worker.messages import Embedding

Vectors = npt.NDArray[np.float32]
Subject = Callable[[Sequence[str]], Vectors]

LENGTHS = (16, 128, 512)
BATCHES = (1, 32)
WITHIN = 1e-5  # in fp32, of a component of a vector of length 1


def texts_of(length: int, count: int, directory: Path) -> list[str]:
    """Texts of so many tokens for this checkpoint, each of its own words."""
    automatic: Any = transformers.AutoTokenizer
    tokenizer = automatic.from_pretrained(directory)
    special = tokenizer.num_special_tokens_to_add()
    words = [word for label in LABELS for word in label.split() if len(tokenizer.tokenize(word)) == 1]
    random = np.random.default_rng(length)
    texts = [" ".join(random.choice(words, length - special)) for _ in range(count)]
    if any(len(tokenizer(text)["input_ids"]) != length for text in texts):
        raise SystemExit(f"{directory}: words do not keep their tokens inside a text of {length}")
    return texts


def worker_engine(directory: Path, device: torch.device, precision: str) -> Subject:
    """The engine with the worker's default settings."""
    checkpoint = load(
        str(directory),
        device=str(device),
        precision=precision,
        labels=(),
        default_language="en",
        self_test="off",
        progress=False,
    )
    engine = Engine(checkpoint, max_tokens=MAX_TOKENS)
    engine.warm_up()

    def run(texts: Sequence[str]) -> Vectors:
        requests = [embed(text) for text in texts]
        outcomes, _ = engine.run([(request, engine.encode(request)) for request in requests])
        return np.stack([outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)])

    return run


def sentence_transformers(directory: Path, device: torch.device, precision: str) -> Subject:
    """The same checkpoint, with the mean pooling that it gives to a directory that names none."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (an extra)

    options = {"dtype": dtype(Precision(precision), device)}
    model: Any = SentenceTransformer(str(directory), device=str(device), model_kwargs=options)
    model.max_seq_length = 512

    def run(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(
            list(texts), batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    return run


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Seconds of a call, by length, batch and subject."""
    device = torch.device(arguments.device)
    makers = {"ours": worker_engine}
    if peers.installed("sentence_transformers"):
        makers["sentence-transformers"] = sentence_transformers
    precisions = [precision for precision in ours(device) if precision != "int8"]
    subjects = {
        f"{name} {precision}": make(directory, device, precision)
        for name, make in makers.items()
        for precision in precisions
    }
    found: dict[str, Any] = {}
    with progress(f"embed, {arguments.family}") as step:
        for length in arguments.length:
            texts = texts_of(length, max(BATCHES), directory)
            require_same(subjects, texts)
            for batch in BATCHES:
                # A run is as many calls as take a while: a single one of few tokens is over in milliseconds.
                calls = max(1, arguments.tokens // (length * batch))
                runs: dict[str, Callable[[], object]] = {
                    name: _calls(subject, texts[:batch], calls) for name, subject in subjects.items()
                }
                seconds = rounds(runs, step, runs=arguments.runs, what=f"{length} tokens, batches of {batch}, ")
                found[f"{length}/{batch}"] = {
                    "length": length,
                    "batch": batch,
                    "seconds": {name: [taken_s / calls for taken_s in times] for name, times in seconds.items()},
                }
    return found


def _calls(subject: Subject, texts: Sequence[str], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            subject(texts)

    return run


def require_same(subjects: dict[str, Subject], texts: Sequence[str]) -> None:
    """End if the subjects compute different vectors in fp32: then their times would say nothing."""
    vectors = {name: subject(texts) for name, subject in subjects.items() if name.endswith("fp32")}
    first, *others = vectors.items()
    for name, found in others:
        furthest = float(np.abs(found - first[1]).max())
        if furthest > WITHIN:
            raise SystemExit(f"{name} and {first[0]} compute vectors that are {furthest:.1e} apart")


def tables(report: dict[str, Any]) -> str:
    """Markdown: a line for each length, batch and subject."""
    head = ("tokens", "batch", "ms a call", "texts/s", "tokens/s", "x sentence-transformers", "noise")
    lines = [f"**{report['family']}**, {report['shape']} shape", "", f"| | {' | '.join(head)} |", "|---|" + "--:|" * 7]
    for entry in report["calls"].values():
        middle = {name: statistics.median(times) for name, times in entry["seconds"].items()}
        for name, taken_s in middle.items():
            rate = entry["batch"] / taken_s
            peer = middle.get(f"sentence-transformers {name.rpartition(' ')[2]}")
            times = entry["seconds"][name]
            cells = (
                entry["length"],
                entry["batch"],
                f"{taken_s * 1000:.1f}",
                f"{rate:.1f}",
                f"{rate * entry['length']:.0f}",
                "" if peer is None else f"{peer / taken_s:.2f}",
                f"{(max(times) - min(times)) / taken_s:.0%}",
            )
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, "", about])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="xlm-roberta")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--length", type=int, action="append", help="tokens of a text; may be given again")
    parser.add_argument("--tokens", type=int, default=4096, help="about as many a run, at least one batch")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the JSON, in place of stdout")
    arguments = parser.parse_args()
    arguments.length = arguments.length or LENGTHS
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="xnli-bench-") as scratch:
        directory = make_checkpoint(SHAPES[arguments.shape], Path(scratch), arguments.family)
        calls = measure(arguments, directory)
    report = {
        "family": arguments.family,
        "shape": arguments.shape,
        "calls": calls,
        "machine": machine(torch.device(arguments.device)),
    }
    print(tables(report))
    if arguments.out is None:
        print(json.dumps(report))
    else:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
