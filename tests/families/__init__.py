"""Tiny random checkpoints of every family, on disk as transformers saves them, with real tokenizers of each kind.

``checkpoint("bart", order=("neutral", "contradiction", "entailment"))`` gives a directory that `worker.inference` and
transformers load alike. The weights are random but large, so that scores differ from pair to pair, and the same for the
same arguments. Directories live as long as the process.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from tests.families import tokenizers

NLI = ("entailment", "neutral", "contradiction")

_ROOT = tempfile.TemporaryDirectory(prefix="xnli-families-")  # kept to the end of the process, then removed
_SPREAD = {"initializer_range": 0.2}  # ten times the usual standard deviation, else all pairs score the same
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **_SPREAD}
_ROBERTA = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    **_SMALL,
}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 1024,
    "init_std": 0.2,
}
_DEBERTA_V3 = {  # as published: relative positions in log buckets, shared keys, no absolute positions, no token types
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 32,
    **_SMALL,
}
_MODERNBERT = {  # as published: every third layer sees the whole row, the others their neighbourhood, here a small one
    **_SMALL,
    "num_hidden_layers": 4,
    "local_attention": 16,
    "classifier_pooling": "mean",
    "max_position_embeddings": 8192,
    "bos_token_id": 1202,
    "cls_token_id": 1202,
    "eos_token_id": 1203,
    "sep_token_id": 1203,
    "pad_token_id": 1204,
}
_MPNET = {"max_position_embeddings": 514, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, **_SMALL}
_XLM = {
    "emb_dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_langs": len(tokenizers.XLM_LANGUAGES),
    "lang2id": tokenizers.XLM_LANGUAGES,
    "id2lang": {number: code for code, number in tokenizers.XLM_LANGUAGES.items()},
    "max_position_embeddings": 512,
    "embed_init_std": 0.2,
    "init_std": 0.2,
}

# For each family: its tokenizer, its model_type, its config.
_MAKERS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], str, dict[str, Any]]] = {
    "xlm-roberta": (tokenizers.xlm_roberta, "xlm-roberta", _ROBERTA),
    "roberta": (tokenizers.roberta, "roberta", _ROBERTA),
    "bert": (tokenizers.bert, "bert", _SMALL),
    "distilbert": (
        tokenizers.distilbert,
        "distilbert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **_SPREAD},
    ),
    "minilm": (tokenizers.xlm_roberta, "bert", {"pad_token_id": 1, **_SMALL}),  # multilingual MiniLM
    "camembert": (tokenizers.xlm_roberta, "camembert", _ROBERTA),
    "electra": (tokenizers.bert, "electra", {"embedding_size": 16, **_SMALL}),
    "albert": (tokenizers.deberta_v2, "albert", {"embedding_size": 16, "num_hidden_groups": 1, **_SMALL}),
    "bart": (tokenizers.roberta, "bart", _BART),
    "mbart": (tokenizers.xlm_roberta, "mbart", {**_BART, "scale_embedding": True}),
    "mpnet": (tokenizers.xlm_roberta, "mpnet", _MPNET),
    "deberta-v2": (tokenizers.deberta_v2, "deberta-v2", _DEBERTA_V3),
    "modernbert": (tokenizers.modernbert, "modernbert", _MODERNBERT),
    "xlm": (tokenizers.xlm, "xlm", _XLM),
}
FAMILIES = tuple(_MAKERS)
# Each has its tokenizer from one of the others and its forward too, so tests of every family leave it to acceptance.
_RELATIVES = frozenset({"camembert", "electra", "albert", "mbart", "mpnet"})
EVERY = [pytest.param(family, marks=pytest.mark.acceptance if family in _RELATIVES else ()) for family in FAMILIES]


def model_type(family: str) -> str:
    """``config.model_type`` of the family's checkpoints."""
    return _MAKERS[family][1]


@functools.cache
def tokenizer(family: str) -> PreTrainedTokenizerBase:
    """The family's tokenizer, made once. Callers must not change it."""
    return _MAKERS[family][0]()


@functools.cache
def checkpoint(
    family: str,
    *,
    order: tuple[str, ...] = NLI,
    head: str = "classification",
    seed: int = 0,
    shard: str = "50GB",
    changes: tuple[tuple[str, Any], ...] = (),
) -> Path:
    """Make a checkpoint, or find the one made before, and give its directory.

    Args:
        family: one of `FAMILIES`.
        order: class names in the order of the logits.
        head: "classification", "none" (the bare encoder) or "language" (a masked language model).
        seed: of the weights.
        shard: largest weight file; "20KB" makes a sharded checkpoint.
        changes: names in the family's config, and values in place of its own.
    """
    make_tokenizer, kind, options = _MAKERS[family]
    words = make_tokenizer()
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(words), **options | dict(changes))
    if head == "classification":
        config.id2label = dict(enumerate(order))
        config.label2id = {name: index for index, name in enumerate(order)}
    automatic: Any = {
        "classification": transformers.AutoModelForSequenceClassification,
        "none": transformers.AutoModel,
        "language": transformers.AutoModelForMaskedLM,
    }[head]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = automatic.from_config(config)
    directory = Path(tempfile.mkdtemp(prefix=f"{family}-", dir=_ROOT.name))
    model.save_pretrained(directory, max_shard_size=shard)
    words.save_pretrained(directory)
    return directory
