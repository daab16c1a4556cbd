"""What `bench` measures with: models of real shapes, and requests like real ones.

Needs torch and transformers alone: neither Kafka nor a network. The models have random weights, which are as fast as
trained ones, and the demo's tokenizer. Its vocabulary is smaller than a published checkpoint's, which makes files small
and changes nothing that is timed, since an embedding is looked up and not multiplied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import transformers

from worker import demo
from worker.inference.engine import Engine
from worker.messages import LongText, Pooling, Request, Task, Work

_DEMO: Final = Path(demo.__file__).parent
DEMO_CHECKPOINT: Final = _DEMO / "checkpoint"
TEMPLATE: Final = "This example is {}."
# Of one or two words, as in real label sets.
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


@dataclass(frozen=True, slots=True)
class Shape:
    """A RoBERTa encoder: ``layers`` of ``hidden`` wide states, ``heads`` of attention, four times that in between."""

    layers: int
    hidden: int
    heads: int


SHAPES: Final = {"small": Shape(6, 384, 12), "base": Shape(12, 768, 12), "large": Shape(24, 1024, 16)}


def make_checkpoint(shape: Shape, directory: Path) -> Path:
    """Write an XLM-RoBERTa NLI checkpoint of this shape with random weights, as transformers saves one."""
    config = transformers.XLMRobertaConfig(
        vocab_size=len(transformers.AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)),
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
        transformers.XLMRobertaForSequenceClassification(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_CHECKPOINT / name, directory)
    return directory


def workload(messages: int, *, labels: tuple[int, int] = (2, 12), seed: int = 0) -> list[Request]:
    """Classification requests of the demo's words, with label sets of their own and log-normal text lengths.

    Args:
        messages: how many.
        labels: fewest and most labels of a message.
        seed: the same for the same requests.
    """
    random = np.random.default_rng(seed)
    samples = (_DEMO / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    words = " ".join(str(json.loads(line).get("text", "")) for line in samples).split()
    requests = []
    for i in range(messages):
        # The median is 25 words; a deviation of 0.8 puts one text in forty over five times that.
        length = int(np.clip(random.lognormal(np.log(25), 0.8), 3, 300))
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
