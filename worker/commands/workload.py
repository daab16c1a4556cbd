"""What `bench` measures with: models of real shapes, and requests like real ones.

Needs torch and transformers alone: neither Kafka nor a network. The models have random weights, which are as fast as
trained ones, and the demo's tokenizer. Its vocabulary is smaller than a published checkpoint's, which makes files small
and changes nothing that is timed, since an embedding is looked up and not multiplied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

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
    """``layers`` of ``hidden`` wide states and ``heads`` of attention; the width in between is the family's."""

    layers: int
    hidden: int
    heads: int


SHAPES: Final = {"small": Shape(6, 384, 12), "base": Shape(12, 768, 12), "large": Shape(24, 1024, 16)}


def _bert(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.hidden,
    }


def _bart(shape: Shape) -> dict[str, Any]:
    """Half of the layers in the encoder, half in the decoder, as bart-base and bart-large have them."""
    return {
        "d_model": shape.hidden,
        **{f"{part}_layers": shape.layers // 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": shape.heads for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 4 * shape.hidden for part in ("encoder", "decoder")},
        "max_position_embeddings": 1024,
    }


def _deberta(shape: Shape) -> dict[str, Any]:
    """As DeBERTa-v3: relative positions in log buckets that share the layers' projections, and no others."""
    return {
        **_bert(shape),
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "pooler_hidden_size": shape.hidden,
        "pooler_hidden_act": "gelu",
    }


def _modernbert(shape: Shape) -> dict[str, Any]:
    """More layers that are narrower in between: 22 and 28, as ModernBERT-base and -large have them."""
    layers = {12: 22, 24: 28}.get(shape.layers, shape.layers)
    inner = {768: 1152, 1024: 2624}.get(shape.hidden, 3 * shape.hidden // 2)
    return {**_bert(shape), "num_hidden_layers": layers, "intermediate_size": inner, "max_position_embeddings": 8192}


def _xlm(shape: Shape) -> dict[str, Any]:
    languages = {"de": 0, "en": 1}
    return {
        "emb_dim": shape.hidden,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_langs": len(languages),
        "lang2id": languages,
        "id2lang": {number: code for code, number in languages.items()},
        "bos_index": 0,
        "pad_index": 1,
        "eos_index": 2,
        "unk_index": 3,
    }


_ROBERTA: Final = {"max_position_embeddings": 514, "type_vocab_size": 1}
# What `make_checkpoint` makes: for each family its ``config.model_type``, and its configuration of a shape.
FAMILIES: Final[Mapping[str, tuple[str, Callable[[Shape], dict[str, Any]]]]] = MappingProxyType(
    {
        "xlm-roberta": ("xlm-roberta", lambda shape: {**_bert(shape), **_ROBERTA}),
        "bert": ("bert", _bert),
        "bart": ("bart", _bart),
        "deberta": ("deberta-v2", _deberta),
        "modernbert": ("modernbert", _modernbert),
        "xlm": ("xlm", _xlm),
    }
)


def make_checkpoint(shape: Shape, directory: Path, family: str = "xlm-roberta") -> Path:
    """Write an NLI checkpoint of this shape and family with random weights, as transformers saves one.

    All families share the demo's tokenizer, so that the same texts have the same tokens.
    """
    kind, options = FAMILIES[family]
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        id2label={0: "contradiction", 1: "neutral", 2: "entailment"},
        label2id={"contradiction": 0, "neutral": 1, "entailment": 2},
        **options(shape),
    )
    automatic: Any = transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        automatic.from_config(config).save_pretrained(directory)
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
