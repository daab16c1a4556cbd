"""Every family that is served gives a row the same result whoever its neighbours are, and reads its whole window."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

from tests import families as tiny
from worker.errors import CheckpointError
from worker.inference import served_families
from worker.inference.engine import Engine
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.messages import Pooling, Row

WINDOW = 64  # tokens that each tiny checkpoint reads
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,  # large weights, so that scores differ from row to row
    "max_position_embeddings": WINDOW,
}
_ENCODER_DECODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.2,
    "max_position_embeddings": WINDOW,
}
_T5 = {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 2.0,
    "decoder_start_token_id": 0,
}
_AFTER_PADDING = _SIZES | {"max_position_embeddings": WINDOW + 2}  # the padding id is 1
_TWO_WAYS = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(served_families.AFTER_PADDING, _AFTER_PADDING),
    **dict.fromkeys(served_families.RELATIVE, _T5),
    "longformer": _AFTER_PADDING | {"attention_window": 16},
    "albert": _SIZES | {"embedding_size": 32},
    "bart": _ENCODER_DECODER,
    "bert": _SIZES,
    "deberta": _SIZES | _TWO_WAYS,
    "deberta-v2": _SIZES | _TWO_WAYS | {"position_buckets": 16},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "initializer_range": 0.2,
        "max_position_embeddings": WINDOW,
    },
    "electra": _SIZES | {"embedding_size": 32},
    "ernie": _SIZES,
    "eurobert": _SIZES | {"num_key_value_heads": 2, "head_dim": 8},
    "gte": _SIZES,
    "mbart": _ENCODER_DECODER,
    "megatron-bert": _SIZES,
    "modernbert": _SIZES | {"local_attention": 8, "initializer_cutoff_factor": 2.0},
    "nomic_bert": _SIZES,
    "rembert": _SIZES | {"input_embedding_size": 32, "output_embedding_size": 32},
    "roformer": _SIZES | {"embedding_size": 32},
    "squeezebert": _SIZES | {"embedding_size": 32},
    "xlm": {
        "emb_dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "init_std": 0.2,
        "embed_init_std": 0.2,
        "max_position_embeddings": WINDOW,
    },
}
# Those whose config and tokenizer say no number.
_WANTED = dict.fromkeys(served_families.RELATIVE, WINDOW)
# The rest are of the same kinds; the kinds are BERT, a RoBERTa, relative positions, an encoder-decoder.
_SUITE = {"albert", "mpnet", "deberta", "t5"}
EACH = [
    pytest.param(name, marks=() if name in _SUITE else pytest.mark.acceptance)
    for name in sorted(served_families.FAMILIES)
]


def make(family: str, directory: Path) -> Path:
    """A checkpoint of ``family`` with random weights, and a tokenizer of which nothing is asked here but its ids."""
    words = tiny.tokenizer("roberta" if family in served_families.AFTER_PADDING else "bert")
    # Encoder-decoders classify by the last token of the end.
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id}
    options = ids | {"vocab_size": len(words)} | CONFIGS[family]
    config = transformers.AutoConfig.for_model(family, **options)
    config.id2label = dict(enumerate(tiny.NLI))
    config.label2id = {name: index for index, name in enumerate(tiny.NLI)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        automatic: Any = transformers.AutoModelForSequenceClassification
        model = automatic.from_config(config)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def row(checkpoint: Checkpoint, length: int, seed: int) -> Row:
    """``length`` tokens, the special ones at both ends among them, and the border of two segments in the middle."""
    special = set(checkpoint.tokenizer.all_special_ids)
    plain = [token for token in range(len(checkpoint.tokenizer)) if token not in special]
    inner = np.random.default_rng(seed).choice(plain, length - 2)
    first, last = checkpoint.tokenizer.cls_token_id, checkpoint.tokenizer.sep_token_id
    return Row(np.array([first, *inner, last], dtype=np.int32), length // 2)


def test_the_list_is_the_one_that_is_proven() -> None:
    assert set(CONFIGS) == served_families.FAMILIES


@pytest.mark.parametrize("family", EACH)
def test_a_row_is_the_same_whoever_its_neighbours_are(family: str, tmp_path: Path) -> None:
    checkpoint = load(
        str(make(family, tmp_path)), device="cpu", precision="fp32", self_test="off", max_length=_WANTED.get(family)
    )
    assert checkpoint.max_length == WINDOW
    rows = [row(checkpoint, length, seed) for seed, length in enumerate((WINDOW, 3, 17, 40, 4, WINDOW))]
    for forward in (Padded(checkpoint), Engine(checkpoint, max_tokens=1000)._forward):
        pools = [functools.partial(forward.pooled, pooling=pooling) for pooling in Pooling]
        computes: list[Callable[[Sequence[Row]], npt.NDArray[np.float32]]] = [forward.logits, *pools]
        for compute in computes:
            together = compute(rows)
            alone = np.concatenate([compute([one]) for one in rows])
            assert np.abs(together - alone).max() < 1e-5 * max(1.0, np.abs(alone).max())
            assert np.abs(alone[1:] - alone[:-1]).max() > 1e-3


def test_half_of_a_t5_embeds_as_the_whole_does(tmp_path: Path) -> None:
    whole = make("t5", tmp_path / "whole")
    half = Path(shutil.copytree(whole, tmp_path / "half"))
    (half / "model.safetensors").unlink()
    transformers.T5EncoderModel.from_pretrained(whole).save_pretrained(half)
    vectors = []
    for directory in (whole, half):
        checkpoint = load(str(directory), device="cpu", precision="fp32", self_test="off", max_length=WINDOW)
        vectors.append(Padded(checkpoint).pooled([row(checkpoint, 9, 0), row(checkpoint, 30, 1)], Pooling.MEAN))
    assert checkpoint.order is None
    assert np.array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("family", ["convbert", "funnel", "xlnet", "fnet", "gpt2"])
def test_a_family_that_is_not_proven_is_refused_with_those_that_are(family: str, tmp_path: Path) -> None:
    words = tiny.tokenizer("bert")
    transformers.AutoConfig.for_model(family, vocab_size=len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=rf"model_type = '{family}'\. Served are albert, .*xlm-roberta"):
        load(str(tmp_path), device="cpu", precision="fp32")
