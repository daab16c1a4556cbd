"""Trains the shipped checkpoint: `python -m tests.checkpoint.train`.

A fresh XLM-RoBERTa of 2.5 million parameters learns from the pairs of `corpus` on a CPU, in bfloat16 where the
processor has matrix units for it: in a first stage short texts, in a second one passages too, up to the model's window,
and in a third one as many passages as short texts. With `--stage` and `--start` earlier stages are left out. The seed
is fixed. The result is written in half precision as safetensors.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer

from tests.checkpoint import vectors, vocabulary
from tests.checkpoint.corpus import Corpus, Pair
from tests.checkpoint.verdicts import CONTRADICTION, LABELS, NEUTRAL

DIRECTORY = Path(__file__).parents[2] / "worker" / "demo" / "checkpoint"

VOCABULARY = 13_000
HIDDEN = 128
LAYERS = 4
HEADS = 4
SEED = 20
PADDING, END = 1, 2  # <pad>, </s>

CHUNK_PAIRS = 4_096  # made, tokenised and grouped by length together
EXACT_TOKENS = 64  # pairs up to this length are batched with those of exactly their length, longer ones are padded
PADDED_TO = 16
TOKENS_A_PAIR = 96  # a batch of long pairs has as many tokens as if each of its pairs had this many
ABSENT = 0.2  # what of a label's "neutral" is put on "contradiction": entailed is then surely the least of the three
WARM_UP = 0.08  # share of the pairs
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
HINT_WEIGHT = 0.5
LEARNT_PLACES = slice(14, 62)  # position ids that short texts have taught well, save the first
UNKNOWN_SHARE = 0.04  # of premise tokens: replaced at random, so that a word never seen is passed over calmly


@dataclass(frozen=True, slots=True)
class Stage:
    """How many pairs are learnt, how fast at most, how many at a time, and to how many draws a passage is added."""

    pairs: int
    peak_rate: float
    batch_pairs: int
    passages: float


SHORT_TEXTS = Stage(350_000, 1.5e-3, 128, 0.0)
PASSAGES = Stage(131_072, 5e-4, 64, 0.35)
LONG_TEXTS = Stage(131_072, 7e-4, 64, 1.0)
STAGES = (SHORT_TEXTS, PASSAGES, LONG_TEXTS)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs of about one length.

    `input_ids` has shape (pairs, tokens), int64, `mask` the same, or None where nothing is padded; `labels` (pairs,),
    int64, and `targets` (pairs, classes), float32. `meanings` has shape (parts, meanings), float32, each row a
    distribution, and `part` (pairs, tokens), int64, tells which of them a token belongs to, -1 where none. `claimed`
    (pairs, meanings) is float32 and zero where the hypothesis has no known meaning. `about_label` (pairs,) is bool.
    """

    input_ids: Tensor
    mask: Tensor | None
    labels: Tensor
    targets: Tensor
    meanings: Tensor
    part: Tensor
    claimed: Tensor
    about_label: Tensor


class Hints(nn.Module):
    """What the lower layers are told in training besides the class; nothing of it is in the checkpoint.

    Without it the class of a label is found very late: nothing in XLM-RoBERTa's input says which segment a token is in,
    and until the segments are told apart their comparison has no gradient. So layer 1 has to know the segment of each
    token, and layer 2 what its own sentence means, at each token of the premise, and what the hypothesis means, at the
    end of it: deep supervision (Lee et al. 2015). A sentence's meaning at its own tokens is what finds one sentence
    among many.
    """

    def __init__(self, meanings: int) -> None:
        super().__init__()
        self.segment = nn.Linear(HIDDEN, 2)
        self.premise = nn.Linear(HIDDEN, meanings)
        self.hypothesis = nn.Linear(HIDDEN, meanings)

    def forward(self, batch: Batch, states: tuple[Tensor, ...]) -> Tensor:
        """The loss, a scalar; `states` are the outputs of the embeddings and of each layer."""
        ends = (batch.input_ids == END).cumsum(1)
        real = batch.input_ids != PADDING
        second = (ends > 0).long()
        segment = functional.cross_entropy(self.segment(states[1][real]).float(), second[real])
        known = batch.part >= 0
        told = functional.cross_entropy(self.premise(states[2][known]).float(), batch.meanings[batch.part[known]])
        last = states[2][torch.arange(len(ends)), real.sum(1) - 1]
        claimed = functional.cross_entropy(self.hypothesis(last).float(), batch.claimed)
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
        pad_token_id=PADDING,
        bos_token_id=0,
        eos_token_id=END,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


def distribution(meanings: frozenset[str], numbers: dict[str, int]) -> Tensor:
    """The meanings as a distribution of shape (all meanings,), float32; zero if there are none."""
    values = torch.zeros(len(numbers))
    values[[numbers[name] for name in meanings]] = 1 / max(1, len(meanings))
    return values


def target(pair: Pair) -> Tensor:
    """The classes as a distribution of shape (classes,), float32."""
    values = functional.one_hot(torch.tensor(pair.label), len(LABELS)).float()
    if pair.about_label and pair.label == NEUTRAL:
        values[NEUTRAL], values[CONTRADICTION] = 1 - ABSENT, ABSENT
    return values


def parts_of(pair: Pair, offsets: list[tuple[int, int]], ids: list[int]) -> list[int]:
    """For each token the number of the premise's part that it belongs to, -1 if none."""
    ends = [end for end, _ in pair.parts]
    found = [-1] * len(ids)
    for at in range(1, ids.index(END)):
        part = bisect_right(ends, offsets[at][1] - 1)
        if part < len(ends) and pair.parts[part][1]:
            found[at] = part
    return found


def batches(
    pairs: list[Pair],
    tokenizer: XLMRobertaTokenizer,
    numbers: dict[str, int],
    rng: random.Random,
    most: int = SHORT_TEXTS.batch_pairs,
) -> Iterator[Batch]:
    """Batches of `most` pairs or fewer of about the same length, in random order.

    Pairs that the window does not hold are left out.
    """
    encoded = tokenizer(
        [pair.premise for pair in pairs], [pair.hypothesis for pair in pairs], return_offsets_mapping=True
    )
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(encoded.input_ids):
        length = len(ids) if len(ids) <= EXACT_TOKENS else -(-len(ids) // PADDED_TO) * PADDED_TO
        if length <= vocabulary.MAX_TOKENS:
            by_length.setdefault(length, []).append(row)
    groups = []
    for length, rows in by_length.items():
        rng.shuffle(rows)
        count = max(1, min(most, most * TOKENS_A_PAIR // length))
        groups += [(length, rows[at : at + count]) for at in range(0, len(rows), count)]
    rng.shuffle(groups)
    for length, rows in groups:
        part = torch.full((len(rows), length), -1)
        input_ids = torch.full((len(rows), length), PADDING)
        meanings: list[Tensor] = []
        for at, row in enumerate(rows):
            ids = encoded.input_ids[row]
            input_ids[at, : len(ids)] = torch.tensor(ids)
            found = torch.tensor(parts_of(pairs[row], encoded.offset_mapping[row], ids))
            part[at, : len(ids)] = torch.where(found < 0, found, found + len(meanings))
            meanings += [distribution(names, numbers) for _, names in pairs[row].parts]
        yield Batch(
            input_ids=input_ids,
            mask=(input_ids != PADDING).long() if length > EXACT_TOKENS else None,
            labels=torch.tensor([pairs[row].label for row in rows]),
            targets=torch.stack([target(pairs[row]) for row in rows]),
            meanings=torch.stack(meanings),
            part=part,
            claimed=torch.stack([distribution(pairs[row].claimed, numbers) for row in rows]),
            about_label=torch.tensor([pairs[row].about_label for row in rows]),
        )


def rate(done: float) -> float:
    """The learning rate when the share `done` of all pairs is seen, as a share of its peak.

    A linear rise, then half a cosine down to zero. A function of pairs and not of steps, because groups of equal length
    do not all fill a batch.
    """
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP)))) / 2


def disturbed(batch: Batch, vocab_size: int) -> Tensor:
    """The batch's ids with some premise tokens replaced by random ones."""
    ids = batch.input_ids
    premise = (ids == END).cumsum(1) == 0
    chosen = premise & (ids > 3) & (torch.rand(ids.shape) < UNKNOWN_SHARE)
    return torch.where(chosen, torch.randint(4, vocab_size - 1, ids.shape), ids)


def fresh(tokenizer: XLMRobertaTokenizer) -> XLMRobertaForSequenceClassification:
    """A model that knows nothing yet but what the words mean."""
    model = XLMRobertaForSequenceClassification(configuration(len(tokenizer)))
    start = vectors.train(tokenizer, HIDDEN)
    with torch.no_grad():
        words = model.roberta.embeddings.word_embeddings.weight
        words.copy_(start)
        words[PADDING].zero_()
    return model


def extend_positions(model: XLMRobertaForSequenceClassification) -> None:
    """Copy the position embeddings that short texts have taught behind themselves, up to the window's end.

    So every place of the window is one that means something to the layers (Beltagy et al. 2020, on Longformer).
    """
    with torch.no_grad():
        places = model.roberta.embeddings.position_embeddings.weight
        taught, first = places[LEARNT_PLACES], LEARNT_PLACES.stop
        places[first:] = taught.repeat(-(-len(places) // len(taught)), 1)[: len(places) - first]


class Training:
    """A model while it learns the pairs of one stage."""

    def __init__(
        self, stage: Stage, model: XLMRobertaForSequenceClassification, tokenizer: XLMRobertaTokenizer
    ) -> None:
        self.stage = stage
        self.model = model
        self.tokenizer = tokenizer
        # On short texts the fused attention is many times slower backwards.
        nn.Module.to(model, torch.float32)  # transformers wraps its own in a way that types do not follow
        model.set_attn_implementation("eager")
        self.rng = random.Random(SEED)
        self.numbers = vectors.names()
        self.hints = Hints(len(self.numbers))
        self.weights = [*self.model.parameters(), *self.hints.parameters()]
        decayed = [weight for weight in self.weights if weight.ndim > 1]
        others = [weight for weight in self.weights if weight.ndim <= 1]
        self.optimizer = AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.chunks = -(-stage.pairs // CHUNK_PAIRS)
        self.seen = 0
        self.corpus = Corpus(self.rng, evaluation=False, passages=stage.passages)
        self.bf16 = torch.cpu._is_amx_tile_supported()  # torch has no public question for it
        self.model.train()

    def step(self, batch: Batch) -> tuple[float, Tensor]:
        """Learn one batch; its loss, and which pairs were answered right, of shape (pairs,)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output = self.model(
                input_ids=disturbed(batch, len(self.tokenizer)),
                attention_mask=batch.mask,
                output_hidden_states=True,
            )
            hint = self.hints(batch, output.hidden_states)
        loss = functional.cross_entropy(output.logits.float(), batch.targets)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.peak_rate * rate(self.seen / (self.chunks * CHUNK_PAIRS))
        self.optimizer.zero_grad(set_to_none=True)
        (loss + HINT_WEIGHT * hint).backward()
        nn.utils.clip_grad_norm_(self.weights, GRADIENT_NORM)
        self.optimizer.step()
        self.seen += len(batch.labels)
        return loss.item(), output.logits.argmax(-1) == batch.labels

    def chunk(self, number: int) -> str:
        """Learn one chunk of pairs; a line that says how it went."""
        losses, right, drawn = 0.0, torch.zeros(3), torch.zeros(3)
        pairs = self.corpus.pairs(CHUNK_PAIRS)
        for batch in batches(pairs, self.tokenizer, self.numbers, self.rng, self.stage.batch_pairs):
            loss, answers = self.step(batch)
            losses += loss * len(batch.labels)
            # Sentences, labels of a short text, labels of a long one.
            kind = batch.about_label.long() * (1 if batch.mask is None else 2)
            drawn += kind.bincount(minlength=3)
            right += kind[answers].bincount(minlength=3)
        shares = (right / drawn.clamp(min=1)).tolist()
        return (
            f"{(number + 1) * CHUNK_PAIRS:>8,} pairs  loss {losses / CHUNK_PAIRS:.4f}  "
            "right: sentences {:.3f}, labels {:.3f}, of long texts {:.3f}".format(*shares)
        )


def learn(training: Training, directory: Path) -> None:
    """Learn one stage and write the checkpoint to `directory`, first long before the stage's end."""
    started = time.monotonic()
    for number in range(training.chunks):
        line = training.chunk(number)
        print(f"{line}  {time.monotonic() - started:.0f} s, CPU {time.process_time():.0f} s", flush=True)
        if number % 5 == 4 or number + 1 == training.chunks:
            write(training.model, training.tokenizer, directory)


def train(directory: Path, start: Path | None, stages: Sequence[Stage]) -> None:
    """Train in the last `stages` of `STAGES`, from the checkpoint `start` if it is given, and write to `directory`."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    if start is None:
        tokenizer = vocabulary.train(VOCABULARY)
        model = fresh(tokenizer)
        print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} pieces", flush=True)
    else:
        tokenizer = vocabulary.read(start)
        model = XLMRobertaForSequenceClassification.from_pretrained(start)
    for number, stage in enumerate(stages, len(STAGES) - len(stages)):
        if number == 1:
            extend_positions(model)
        learn(Training(stage, model, tokenizer), directory)


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
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1, help="the first that is run")
    parser.add_argument("--start", type=Path, help="the checkpoint of the stage before it")
    parser.add_argument("--share", type=float, default=1.0, help="of the pairs of each stage (default: all)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if (arguments.stage == 1) != (arguments.start is None):
        parser.error("--start: give the checkpoint of the stage before --stage")
    stages = [replace(stage, pairs=round(stage.pairs * arguments.share)) for stage in STAGES[arguments.stage - 1 :]]
    train(arguments.directory, arguments.start, stages)


if __name__ == "__main__":
    main()
