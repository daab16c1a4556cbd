"""What `xnli-worker bench` and `tests.bench` measure: models of real shapes, a workload, the engine, and its floor.

Needs torch and transformers alone: neither Kafka nor a network. The models have random weights, which are as fast as
trained ones, and the demo's tokenizer, whose vocabulary is smaller than a published checkpoint's: that makes files
small and changes nothing that is timed, since an embedding is looked up and not multiplied.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from worker import demo
from worker.core.pair import flatten
from worker.inference.checkpoint import Checkpoint
from worker.inference.engine import Engine
from worker.messages import LongText, Pooling, Request, Task

_DEMO = Path(demo.__file__).parent
TEMPLATE = "This example is {}."
LABELS = (
    *("politics", "sport", "travel", "billing", "shipping", "health", "music", "science", "weather", "food", "cars"),
    *("fashion", "education", "crime", "art", "finance", "religion", "technology", "nature", "history", "games"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A RoBERTa encoder: ``layers`` of ``hidden`` wide states, ``heads`` of attention, four times that in between."""

    layers: int
    hidden: int
    heads: int


SHAPES = {"small": Shape(6, 384, 12), "base": Shape(12, 768, 12), "large": Shape(24, 1024, 16)}


def make_checkpoint(shape: Shape, directory: Path) -> Path:
    """Write an XLM-RoBERTa NLI checkpoint of this shape with random weights, as transformers saves one."""
    words = transformers.AutoTokenizer.from_pretrained(_DEMO / "checkpoint")
    config = transformers.XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=514,
        type_vocab_size=1,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.XLMRobertaForSequenceClassification(config)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_DEMO / "checkpoint" / name, directory)
    return directory


def workload(
    messages: int, *, labels: tuple[int, int] = (2, 12), median_words: float = 25, spread: float = 0.8, seed: int = 0
) -> list[Request]:
    """Classification requests with label sets of their own and log-normal text lengths.

    Args:
        messages: how many.
        labels: fewest and most labels of a message.
        median_words: of the texts' lengths; ``spread`` is the standard deviation of their logarithm.
        spread: 0.8 puts one text in forty over five times the median.
        seed: the same for the same requests.
    """
    random = np.random.default_rng(seed)
    samples = (_DEMO / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(str(json.loads(line).get("text", "")) for line in samples).split()
    requests = []
    for i in range(messages):
        length = int(np.clip(random.lognormal(np.log(median_words), spread), 3, 300))
        chosen = tuple(random.permutation(LABELS)[: random.integers(labels[0], labels[1] + 1)].tolist())
        requests.append(
            Request(
                id=str(i),
                task=Task.CLASSIFY,
                text=" ".join(random.choice(words, length)),
                labels=chosen,
                hypotheses=tuple(TEMPLATE.format(label) for label in chosen),
                multi_label=False,
                language=None,
                top_k=None,
                threshold=None,
                long_text=LongText.TRUNCATE,
                pooling=Pooling.MEAN,
                normalize=True,
                attributes={},
            )
        )
    return requests


def answer(engine: Engine, requests: Sequence[Request], *, batch: int = 256) -> None:
    """Do what the worker does with the requests, in batches of at most ``batch``: tokenise, compute, score."""
    for start in range(0, len(requests), batch):
        engine.run([(request, engine.encode(request)) for request in requests[start : start + batch]])


def sizes(engine: Engine, requests: Sequence[Request]) -> tuple[int, int]:
    """Pairs and tokens in the requests, each distinct pair once."""
    rows = flatten([engine.encode(request).rows for request in requests]).rows
    return len(rows), sum(len(row.token_ids) for row in rows)


def floor(checkpoint: Checkpoint, tokens: int) -> Callable[[], None]:
    """The matrix products that classifying so many tokens cannot do without, and nothing else: no engine is faster.

    Four in each layer, in the checkpoint's weight format; of the last layer only the first, since of what follows only
    each row's CLS is needed. So many tokens at a time as measured fastest.
    """
    config: Any = checkpoint.model.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    device, dtype = checkpoint.device, checkpoint.model.dtype
    rows = 2048 if device.type == "cpu" else 16384
    qkv, *others = (3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)
    # Weights of their own for each layer: what a cache holds of one product must not serve the next.
    weights = [
        torch.randn(shape, dtype=dtype, device=device)
        for layer in range(layers)
        for shape in (qkv, *(others if layer < layers - 1 else ()))
    ]
    states = {width: torch.randn((rows, width), dtype=dtype, device=device) for width in (hidden, inner)}

    @torch.inference_mode()
    def multiply() -> None:
        for start in range(0, tokens, rows):
            count = min(rows, tokens - start)
            for weight in weights:
                torch.mm(states[weight.shape[1]][:count], weight.T)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return multiply


def alternate(subjects: dict[str, Callable[[], None]], *, runs: int) -> dict[str, list[float]]:
    """Seconds that each subject took in each of ``runs`` rounds, all taking turns, after one round that is not timed.

    Turns, because a machine's speed drifts: each round's subjects met the same machine.
    """
    for subject in subjects.values():
        subject()
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(runs):
        for name, subject in subjects.items():
            began_s = time.perf_counter()
            subject()
            seconds[name].append(time.perf_counter() - began_s)
    return seconds


def median(seconds: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(seconds)
