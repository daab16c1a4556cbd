"""Rows of random tokens, as each family of tiny checkpoints takes them, and their checkpoints."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import strategies as st

from tests import families
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.messages import Row


def open_checkpoint(family: str) -> Checkpoint:
    """A checkpoint of its own for the caller, who may change it."""
    return load(
        str(families.checkpoint(family)),
        device="cpu",
        precision="fp32",
        self_test="off",
        default_language="en",
        progress=False,
    )


shared_checkpoint = functools.cache(open_checkpoint)


def row(checkpoint: Checkpoint, seed: int, length: int) -> Row:
    """BART's has one ``</s>`` or more, the last not always at its end; XLM's has a language."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 400, length).astype(np.int32)
    if checkpoint.model.config.is_encoder_decoder:
        ids[random.integers(0, length, 3)] = checkpoint.model.config.eos_token_id
    language = int(random.integers(0, len(checkpoint.languages))) if checkpoint.languages else None
    return Row(ids, length // 2, language)


def lists_of_rows(lengths: tuple[int, int], *, most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Seeds and lengths for `row`."""
    return st.lists(st.tuples(st.integers(0, 99), st.integers(*lengths)), min_size=1, max_size=most)
