"""Trains the shipped checkpoint: `python -m tests.checkpoint.train`.

A fresh XLM-RoBERTa of 2.5 million parameters learns from the pairs of `corpus` on a CPU, in bfloat16 where the
processor has matrix units for it. The seed is fixed. The result is written in half precision as safetensors.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer

from tests.checkpoint import vectors, vocabulary
from tests.checkpoint.corpus import LABELS, Corpus, Pair

DIRECTORY = Path(__file__).parents[2] / "worker" / "demo" / "checkpoint"

VOCABULARY = 13_000
HIDDEN = 128
LAYERS = 4
HEADS = 4
SEED = 20
END = 2  # </s>

PAIRS = 350_000
CHUNK_PAIRS = 16_384  # made, tokenised and grouped by length together
BATCH_PAIRS = 128
PEAK_RATE = 1.5e-3
WARM_UP = 0.08  # share of the pairs
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
HINT_WEIGHT = 0.5
UNKNOWN_SHARE = 0.04  # of premise tokens: replaced at random, so that a word never seen is passed over calmly


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs of one length.

    `input_ids` has shape (pairs, tokens) and `labels` (pairs,), both int64; `told` and `claimed` have shape (pairs,
    meanings), float32, and sum to one where the meaning is known, else to zero; `about_label` (pairs,) is bool.
    """

    input_ids: Tensor
    labels: Tensor
    told: Tensor
    claimed: Tensor
    about_label: Tensor


class Hints(nn.Module):
    """What the lower layers are told in training besides the class; nothing of it is in the checkpoint.

    Without it the class of a label is found very late: nothing in XLM-RoBERTa's input says which segment a token is in,
    and until the segments are told apart their comparison has no gradient. So layer 1 has to know the segment of each
    token, and layer 2 what is meant by the premise (at the end of it) and by the hypothesis (at the end of it): deep
    supervision (Lee et al. 2015).
    """

    def __init__(self, meanings: int) -> None:
        super().__init__()
        self.segment = nn.Linear(HIDDEN, 2)
        self.premise = nn.Linear(HIDDEN, meanings)
        self.hypothesis = nn.Linear(HIDDEN, meanings)

    def forward(self, batch: Batch, states: tuple[Tensor, ...]) -> Tensor:
        """The loss, a scalar; `states` are the outputs of the embeddings and of each layer."""
        ends = (batch.input_ids == END).cumsum(1)
        segment = functional.cross_entropy(self.segment(states[1]).float().flatten(0, 1), (ends > 0).long().flatten())
        rows = torch.arange(len(ends))
        premise_end = (ends == 0).sum(1)
        told = functional.cross_entropy(self.premise(states[2][rows, premise_end]).float(), batch.told)
        claimed = functional.cross_entropy(self.hypothesis(states[2][:, -1]).float(), batch.claimed)
        return segment + told + claimed


def configuration(vocab_size: int) -> XLMRobertaConfig:
    """XLM-RoBERTa in small; positions as in the original, so that 512 tokens can be used."""
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=vocabulary.MAX_TOKENS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,  # the pairs hardly ever repeat, and the replaced words already disturb them
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


def target(meanings: frozenset[str], numbers: dict[str, int]) -> Tensor:
    """The meanings as a distribution of shape (all meanings,), float32; zero if there are none."""
    values = torch.zeros(len(numbers))
    values[[numbers[name] for name in meanings]] = 1 / max(1, len(meanings))
    return values


def batches(
    pairs: list[Pair], tokenizer: XLMRobertaTokenizer, numbers: dict[str, int], rng: random.Random
) -> Iterator[Batch]:
    """Batches of pairs of exactly the same length, so that nothing is padded or masked, in random order."""
    encoded = tokenizer([pair.premise for pair in pairs], [pair.hypothesis for pair in pairs]).input_ids
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(row)
    groups = [rows[at : at + BATCH_PAIRS] for rows in by_length.values() for at in range(0, len(rows), BATCH_PAIRS)]
    rng.shuffle(groups)
    for rows in groups:
        yield Batch(
            input_ids=torch.tensor([encoded[row] for row in rows]),
            labels=torch.tensor([pairs[row].label for row in rows]),
            told=torch.stack([target(pairs[row].told, numbers) for row in rows]),
            claimed=torch.stack([target(pairs[row].claimed, numbers) for row in rows]),
            about_label=torch.tensor([pairs[row].about_label for row in rows]),
        )


def rate(done: float) -> float:
    """The learning rate when the share `done` of all pairs is seen: a linear rise, then half a cosine down to zero.

    A function of pairs and not of steps, because groups of equal length do not all fill a batch.
    """
    if done < WARM_UP:
        return PEAK_RATE * done / WARM_UP
    return PEAK_RATE * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def disturbed(batch: Batch, vocab_size: int) -> Tensor:
    """The batch's ids with some premise tokens replaced by random ones."""
    ids = batch.input_ids
    premise = (ids == END).cumsum(1) == 0
    chosen = premise & (ids > 3) & (torch.rand(ids.shape) < UNKNOWN_SHARE)
    return torch.where(chosen, torch.randint(4, vocab_size - 1, ids.shape), ids)


def train(directory: Path, pairs: int) -> None:
    """Train on `pairs` pairs and write the checkpoint to `directory`."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = vocabulary.train(VOCABULARY)
    model = XLMRobertaForSequenceClassification(configuration(len(tokenizer)))
    model.set_attn_implementation("eager")  # the CPU's fused attention is many times slower backwards on short texts
    start = vectors.train(tokenizer, HIDDEN)
    with torch.no_grad():
        words = model.roberta.embeddings.word_embeddings.weight
        words.copy_(start)
        words[1].zero_()  # padding
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} pieces")
    numbers = vectors.names()
    hints = Hints(len(numbers))
    weights = [*model.parameters(), *hints.parameters()]
    decayed = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    optimizer = AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    chunks = -(-pairs // CHUNK_PAIRS)
    bf16 = torch.cpu._is_amx_tile_supported()  # torch has no public question for it
    stream = Corpus(rng, evaluation=False).pairs()
    started, seen = time.monotonic(), 0
    model.train()
    for chunk in range(chunks):
        losses, right, drawn = 0.0, torch.zeros(2), torch.zeros(2)
        for batch in batches(list(islice(stream, CHUNK_PAIRS)), tokenizer, numbers, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(input_ids=disturbed(batch, len(tokenizer)), output_hidden_states=True)
                hint = hints(batch, output.hidden_states)
            loss = functional.cross_entropy(output.logits.float(), batch.labels)
            for group in optimizer.param_groups:
                group["lr"] = rate(seen / (chunks * CHUNK_PAIRS))
            optimizer.zero_grad(set_to_none=True)
            (loss + HINT_WEIGHT * hint).backward()
            nn.utils.clip_grad_norm_(weights, GRADIENT_NORM)
            optimizer.step()
            seen += len(batch.labels)
            losses += loss.item() * len(batch.labels)
            kind = batch.about_label.long()
            drawn += kind.bincount(minlength=2)
            right += kind[output.logits.argmax(-1) == batch.labels].bincount(minlength=2)
        print(
            f"{(chunk + 1) * CHUNK_PAIRS:>8,} pairs  loss {losses / CHUNK_PAIRS:.4f}  "
            f"right: sentences {right[0] / drawn[0]:.3f}, labels {right[1] / drawn[1]:.3f}  "
            f"{time.monotonic() - started:.0f} s, CPU {time.process_time():.0f} s",
            flush=True,
        )
        if chunk % 5 == 4 or chunk + 1 == chunks:
            write(model, tokenizer, directory)


def write(model: XLMRobertaForSequenceClassification, tokenizer: XLMRobertaTokenizer, directory: Path) -> None:
    """Write config, weights in half precision and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).train(mode=False).half().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # transformers leaves it to its owner alone
    vocabulary.save(tokenizer, directory)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where to write (default: the package)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="training pairs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.directory, arguments.pairs)


if __name__ == "__main__":
    main()
