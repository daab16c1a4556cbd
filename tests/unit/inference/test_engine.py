"""The engine's own decisions, over a Forward that computes by hand and fails on demand; and over the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests import families
from tests.builders import classify, embed, entail
from worker.errors import FatalError, OutOfDeviceMemory, Rejection
from worker.inference.budget import TokenBudget
from worker.inference.engine import Engine
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.messages import (
    Classification,
    Embedding,
    Encoded,
    Entailment,
    LongText,
    Outcome,
    Pooling,
    Request,
    Row,
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    directory = families.checkpoint("xlm-roberta")
    return load(str(directory), device="cpu", precision="fp32", max_length=64, self_test="off", progress=False)


class ByHand:
    """Logits and vectors that are functions of a row's tokens, and a memory of ``room`` tokens."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.calls: list[list[int]] = []
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return np.cumsum(lengths)

    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        self._enter(rows)
        return np.array([[0, len(row.token_ids) / 9, row.token_ids.sum() / 999] for row in rows], dtype=np.float32)

    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        self._enter(rows)
        at = slice(0, 1) if pooling is Pooling.CLS else slice(None)
        return np.array([[row.token_ids[at].mean(), len(row.token_ids)] for row in rows], dtype=np.float32)

    def _enter(self, rows: Sequence[Row]) -> None:
        lengths = [len(row.token_ids) for row in rows]
        if sum(lengths) > self.room:
            raise self.error
        self.calls.append(lengths)


MIXED = [
    classify("The parcel arrived late.", "shipping", "billing", "music"),
    classify("Der Zug fährt heute nicht.", "travel"),
    entail("A man is playing the guitar.", "someone makes music", "nobody moves"),
    classify("Where is my refund? " * 9, "billing", "travel", multi_label=True, long_text=LongText.WINDOW_MAX),
    embed("El paquete.", normalize=False),
    embed("El paquete.", pooling=Pooling.CLS),
    embed("Bonjour " * 80, normalize=False, long_text=LongText.WINDOW_MEAN),
    classify("The parcel arrived late.", "billing", "shipping"),
]


def encode(engine: Engine, requests: Sequence[Request]) -> list[tuple[Request, Encoded]]:
    return [(made, engine.encode(made)) for made in requests]


def numbers(outcome: Outcome) -> list[float]:
    match outcome:
        case Classification():
            return [n for label in outcome.labels for n in (label.score, label.entailment, label.contradiction)]
        case Entailment():
            return [n for judged in outcome.judgements for n in (judged.entailment, judged.neutral)]
        case Embedding():
            return [float(n) for n in outcome.vector]


def close(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    same_kinds = [type(outcome) for outcome in one] == [type(outcome) for outcome in other]
    return same_kinds and all(
        numbers(a) == pytest.approx(numbers(b), abs=1e-5) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("max_tokens", [1, 100, 10_000])
@pytest.mark.parametrize("padded", [True, False])
def test_a_mixed_batch_answers_each_request_as_alone(checkpoint: Checkpoint, max_tokens: int, *, padded: bool) -> None:
    engine = Engine(checkpoint, max_tokens=max_tokens, forward=Padded(checkpoint) if padded else None)
    jobs = encode(engine, MIXED)
    outcomes, work = engine.run(jobs)
    assert close(outcomes, [engine.run([job])[0][0] for job in jobs])
    assert work.rows == sum(len(encoded.rows) for _, encoded in jobs)
    assert work.slots == work.tokens if not padded else work.slots >= work.tokens


def test_padded_and_packed_agree(checkpoint: Checkpoint) -> None:
    one = Engine(checkpoint, max_tokens=200, forward=Padded(checkpoint))
    other = Engine(checkpoint, max_tokens=300)
    assert close(one.run(encode(one, MIXED))[0], other.run(encode(other, MIXED))[0])


def test_a_batch_without_requests_costs_nothing(checkpoint: Checkpoint) -> None:
    outcomes, work = Engine(checkpoint, max_tokens=100, forward=ByHand()).run([])
    assert outcomes == []
    assert work.forwards == work.rows == 0


def test_slices_are_ordered_by_length_and_bounded_by_the_budget(checkpoint: Checkpoint) -> None:
    forward = ByHand()
    engine = Engine(checkpoint, max_tokens=40, forward=forward)
    jobs = encode(engine, [classify("word " * n, "a", "b") for n in (3, 55, 9, 1, 20)])
    _, work = engine.run(jobs)
    flat = [length for call in forward.calls for length in call]
    assert flat == sorted(flat, reverse=True)
    assert len(flat) == work.computed == 10
    assert all(sum(call) <= 40 or len(call) == 1 for call in forward.calls)
    # No slice could have taken the next row too.
    assert all(sum(one) + two[0] > 40 for one, two in zip(forward.calls, forward.calls[1:], strict=False))
    assert work.forwards == len(forward.calls)


def test_a_repeated_pair_is_computed_once(checkpoint: Checkpoint) -> None:
    forward = ByHand()
    engine = Engine(checkpoint, max_tokens=10_000, forward=forward)
    jobs = encode(engine, [classify("same text", "a", "b", "a"), classify("same text", "b", "c")])
    outcomes, work = engine.run(jobs)
    assert (work.rows, work.computed) == (5, 3)
    assert close(outcomes, [engine.run([job])[0][0] for job in jobs])
    first = outcomes[0]
    assert isinstance(first, Classification)
    assert sorted(label.label for label in first.labels) == ["a", "a", "b"]


def test_the_cache_answers_known_pairs_and_forgets_the_oldest(checkpoint: Checkpoint) -> None:
    forward = ByHand()
    engine = Engine(checkpoint, max_tokens=10_000, cache_pairs=3, forward=forward)
    jobs = encode(engine, [classify("text", label) for label in "abcd"])
    expected, work = engine.run(jobs[:2])
    assert (work.computed, work.cache_hits) == (2, 0)
    outcomes, work = engine.run([jobs[0]])  # now b is the oldest
    assert (work.computed, work.cache_hits, work.forwards) == (0, 1, 0)
    assert outcomes == expected[:1]
    engine.run(jobs[2:])  # b leaves
    _, work = engine.run([jobs[0], jobs[2], jobs[3]])
    assert (work.computed, work.cache_hits) == (0, 3)
    outcomes, work = engine.run([jobs[0], jobs[1]])
    assert (work.computed, work.cache_hits) == (1, 1)
    assert outcomes == expected
    # A batch larger than the cache is answered whole.
    outcomes, work = engine.run(jobs)
    assert len(outcomes) == 4


def test_without_a_cache_nothing_is_kept(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, max_tokens=10_000, forward=ByHand())
    jobs = encode(engine, [classify("text", "a")])
    engine.run(jobs)
    assert engine.run(jobs)[1].computed == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("no more"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_does_not_fit_is_tried_again_smaller(checkpoint: Checkpoint, error: Exception) -> None:
    roomy, tight = ByHand(), ByHand(room=70)
    tight.error = error
    plain = Engine(checkpoint, max_tokens=10_000, forward=roomy)
    engine = Engine(checkpoint, max_tokens=10_000, forward=tight)
    jobs = encode(engine, MIXED)
    outcomes, work = engine.run(jobs)
    assert outcomes[0] == plain.run(jobs)[0][0]
    assert close(outcomes, plain.run(jobs)[0])
    assert work.shrinks >= 1
    assert all(sum(call) <= 70 for call in tight.calls)
    assert sum(map(sum, tight.calls)) == work.tokens  # what had fitted was not computed again
    assert engine.run(jobs)[1].shrinks == 0  # the lesson is kept


def test_one_row_that_does_not_fit_is_reported_with_its_size(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, max_tokens=10_000, forward=ByHand(room=20))
    jobs = encode(engine, [classify("word " * 40, "a"), classify("word", "b")])
    with pytest.raises(OutOfDeviceMemory, match="CUDA out of memory") as raised:
        engine.run(jobs)
    assert raised.value.tokens == jobs[0][1].tokens
    _, work = engine.run(jobs[1:])
    assert work.computed == 1
    assert work.shrinks >= 1  # those of the run that failed are not forgotten
    assert engine.run(jobs[1:])[1].shrinks == 0


def test_other_errors_are_not_taken_for_memory(checkpoint: Checkpoint) -> None:
    forward = ByHand(room=0)
    engine = Engine(checkpoint, max_tokens=10_000, forward=forward)
    jobs = encode(engine, MIXED[:1])
    forward.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        engine.run(jobs)
    forward.error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(FatalError, match="illegal memory access"):
        engine.run(jobs)


def test_warm_up_finds_what_the_device_holds(checkpoint: Checkpoint) -> None:
    forward = ByHand(room=500)
    engine = Engine(replace(checkpoint, device=torch.device("cuda")), max_tokens=1000, forward=forward)
    # The device is only a name here: emptying CUDA's cache is a no-op where CUDA was never used.
    engine.warm_up()
    assert all(sum(call) <= 500 for call in forward.calls)
    assert max(map(max, forward.calls)) == checkpoint.max_length
    jobs = encode(engine, [classify(f"{i} " + "word " * 50, "a", "b") for i in range(9)])
    _, work = engine.run(jobs)
    assert work.shrinks == 0


def test_warm_up_on_a_cpu_is_one_row_and_two_short_ones(checkpoint: Checkpoint) -> None:
    forward = ByHand()
    Engine(checkpoint, max_tokens=10_000, forward=forward).warm_up()
    assert forward.calls == [[checkpoint.max_length], [5, 3]]


def test_a_message_that_makes_the_model_give_nan_is_rejected(checkpoint: Checkpoint) -> None:
    class Broken(ByHand):
        def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
            return super().logits(rows) * np.float32("nan")

    engine = Engine(checkpoint, max_tokens=100, forward=Broken())
    with pytest.raises(Rejection):
        engine.run(encode(engine, MIXED[:1]))


def test_the_budget_halves_and_creeps_back() -> None:
    budget = TokenBudget(1600)
    budget.shrink(1500)
    assert budget.tokens == 750
    budget.shrink(100)  # a small slice failed: what is free is less than the budget said
    assert budget.tokens == 50
    for _ in range(TokenBudget.SUCCESSES_PER_STEP - 1):
        budget.succeed()
    assert budget.tokens == 50
    budget.succeed()
    assert budget.tokens == 150
    for _ in range(TokenBudget.SUCCESSES_PER_STEP * 20):
        budget.succeed()
    assert budget.tokens == 1600


def test_a_settled_budget_does_not_grow_past_what_was_found() -> None:
    budget = TokenBudget(1600)
    budget.shrink(1600)
    budget.settle()
    for _ in range(TokenBudget.SUCCESSES_PER_STEP * 20):
        budget.succeed()
    assert budget.tokens == 800


def test_whoever_watches_hears_of_each_forward_before_it(checkpoint: Checkpoint) -> None:
    forward = ByHand(room=24)
    engine = Engine(checkpoint, max_tokens=40, forward=forward)
    jobs = encode(engine, [classify("word " * n, "a", "b") for n in (3, 9, 1)])
    heard: list[int] = []
    _, work = engine.run(jobs, lambda: heard.append(len(forward.calls)))
    assert sorted(set(heard)) == list(range(work.forwards)), "one that did not fit and was tried again is heard twice"
    assert len(heard) == work.forwards + work.shrinks
