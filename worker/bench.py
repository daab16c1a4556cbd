"""What `xnli-worker bench` and `tests.bench` measure: models of real shapes, a workload, the engine, and its floor.

Needs torch and transformers alone: neither Kafka nor a network. The models have random weights, which are as fast as
trained ones, and the demo's tokenizer, whose vocabulary is smaller than a published checkpoint's: that makes files
small and changes nothing that is timed, since an embedding is looked up and not multiplied.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from worker import demo
from worker.inference.engine import Engine
from worker.inference.forwards import encoder
from worker.inference.model import Checkpoint
from worker.inference.precision import Processor
from worker.messages import LongText, Pooling, Request, Task, Work

_DEMO: Final = Path(demo.__file__).parent
DEMO_CHECKPOINT: Final = _DEMO / "checkpoint"
TEMPLATE: Final = "This example is {}."
# As many as a message of the longest label curve needs, of one or two words as in real label sets.
LABELS: Final = (
    *("politics", "sport", "travel", "billing", "shipping", "health", "music", "science", "weather", "food", "cars"),
    *("fashion", "education", "crime", "art", "finance", "religion", "technology", "nature", "history", "games"),
    *("public health", "real estate", "customer service", "foreign policy", "climate change", "social media"),
    *("home delivery", "job offer", "data protection", "public transport", "space travel", "machine learning"),
    *("refund", "complaint", "praise", "spam", "threat", "insult", "advertising", "invitation", "emergency", "news"),
    *("question", "cooking", "gardening", "parenting", "cinema", "theatre", "books", "chess", "football", "tennis"),
    *("swimming", "mountains", "the sea", "insurance", "taxes", "elections", "energy", "mining", "farming", "fishing"),
    "law",
)
# The engine's default, as the worker's settings have it.
MAX_TOKENS: Final = 16384


@dataclass(frozen=True, slots=True)
class Shape:
    """A RoBERTa encoder: ``layers`` of ``hidden`` wide states, ``heads`` of attention, four times that in between."""

    layers: int
    hidden: int
    heads: int


SHAPES = {"small": Shape(6, 384, 12), "base": Shape(12, 768, 12), "large": Shape(24, 1024, 16)}


def make_checkpoint(shape: Shape, directory: Path) -> Path:
    """Write an XLM-RoBERTa NLI checkpoint of this shape with random weights, as transformers saves one."""
    words = transformers.AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
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
        shutil.copy(DEMO_CHECKPOINT / name, directory)
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


def answer(engine: Engine, requests: Sequence[Request], *, batch: int = 256) -> list[Work]:
    """Do what the worker does with the requests, in batches of at most ``batch``: tokenise, compute, score."""
    return [
        engine.run([(request, engine.encode(request)) for request in requests[start : start + batch]])[1]
        for start in range(0, len(requests), batch)
    ]


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


def floor(checkpoint: Checkpoint, tokens: int) -> Callable[[], None]:
    """The matrix products that classifying so many tokens cannot do without, and nothing else: no engine is faster.

    Four in each layer, in the checkpoint's weight format; of the last layer only the first, since of what follows only
    each row's CLS is needed. So many tokens at a time as measured fastest.

    Raises:
        ValueError: the checkpoint is no encoder of the BERT family, whose products these are.
    """
    if not encoder.supports(checkpoint):
        raise ValueError(f"the matrix products of {checkpoint.family} are others")
    config: Any = checkpoint.model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = config.hidden_dim if checkpoint.family == "distilbert" else config.intermediate_size
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


def alternate(
    subjects: Mapping[str, Callable[[], object]], *, runs: int, done: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds that each subject took in each of ``runs`` rounds, all taking turns, after one round that is not timed.

    Turns, because a machine's speed drifts: each round's subjects met the same machine. ``done`` is called after each
    turn, `len(subjects) * (runs + 1)` times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(runs + 1):
        for name, subject in subjects.items():
            began_s = time.perf_counter()
            subject()
            seconds[name].append(time.perf_counter() - began_s)
            done()
    return {name: times[1:] for name, times in seconds.items()}


def median(seconds: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(seconds)


def machine(device: torch.device, packages: Sequence[str] = ("torch", "transformers")) -> dict[str, str | int]:
    """Where and with what is measured: device, processor, threads, and the versions of ``packages`` that are there."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": processor or platform.processor(),
        "fast_formats": str(Processor.probe()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }
