"""A checkpoint learns labels from examples, and keeps what it knew: from labelled texts to a directory that is served.

1. The model as it is reads every text: it is measured, its hard negatives are found, and what it says of the texts that
   are rehearsed is noted (`lessons`).
2. The pairs go through transformers' Trainer (`training`), without those held out, which tell after how many epochs it
   is best; then the model as it was learns from all pairs for as many epochs. Few examples are too few to do without
   a part of them.
3. The weights are written beside the output (`checkpoint_directory`), loaded as a worker loads them, self-test
   included, and measured again. Only then does the directory get its name.
"""

from __future__ import annotations

import gc
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from worker.errors import CheckpointError, SettingsError
from worker.inference import loading
from worker.inference.engine import Engine
from worker.inference.model import Checkpoint
from worker.inference.source import Source
from worker.learn import checkpoint_directory, lessons, model_card, quality, scoring, training, training_pairs
from worker.learn.model_card import Compared, Story
from worker.learn.quality import Report
from worker.learn.scoring import Asked, Scored
from worker.learn.training import Epoch, Plan
from worker.learn.training_pairs import Pair
from worker.messages import Request

Bar = Callable[[str, str, int | None], AbstractContextManager[Callable[[int, int], None]]]
"""A progress bar: a verb, a unit and where it ends; what it yields takes how far it moves, and the count so far."""


@dataclass(frozen=True, slots=True)
class Material:
    """The texts of an adaptation.

    Attributes:
        examples: what is to be learnt.
        test: examples of the same labels that measure it; empty: those that are held out do.
        unseen: examples of other labels, which measure what is lost; may be empty.
        rehearsal: texts with hypotheses of which the model should go on saying what it says; may be empty.
    """

    examples: Sequence[Asked]
    test: Sequence[Asked] = ()
    unseen: Sequence[Asked] = ()
    rehearsal: Sequence[Request] = ()


@dataclass(frozen=True, slots=True)
class Choices:
    """What an operator may choose.

    Attributes:
        plan: how to train.
        held_out: share of each label's examples, and of the rehearsal, that tells for how long to train.
        negatives: rivals of a text at most that it is taught to contradict.
        rehearsal_share: of the loss.
        max_tokens: of a batch for the engine.
    """

    plan: Plan = field(default_factory=Plan)
    held_out: float = 0.25
    negatives: int = 6
    rehearsal_share: float = 0.75
    max_tokens: int = 16_384


@dataclass(frozen=True, slots=True)
class Loader:
    """How the worker loads a checkpoint.

    Attributes:
        source: the files of the checkpoint to adapt.
        open_engine: loads a directory as the worker would. Raises CheckpointError.
        device: as ``model.device``.
        labels: as ``model.labels``.
    """

    source: Source
    open_engine: Callable[[Path], Engine]
    device: str = "auto"
    labels: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class _Lessons:
    """Pairs that are learnt and pairs that are rehearsed, and the share of the loss that the latter have."""

    learnt: list[Pair]
    kept: list[Pair]
    share: float

    @property
    def pairs(self) -> list[Pair]:
        return training_pairs.together(self.learnt, self.kept, self.share)

    def __add__(self, other: _Lessons) -> _Lessons:
        return _Lessons([*self.learnt, *other.learnt], [*self.kept, *other.kept], self.share)


# size: the steps in their order, each a line or two; what they hand on is all of it local.
def adapt(
    loader: Loader, material: Material, output: Path, choices: Choices, bar: Bar, hear: Callable[[Epoch], None]
) -> Story:
    """Adapt a checkpoint, and write it to a directory of its own.

    Args:
        loader: the checkpoint.
        material: the texts.
        output: the directory to write; there must be none.
        choices: how.
        bar: shows how far it is.
        hear: is told of each epoch.

    Raises:
        SettingsError: ``output`` is there, texts or choices do not fit the model, or the worker would refuse what came
            of it. Nothing is written then.
        FatalError: the directory could not be written.
    """
    began_s = time.monotonic()
    with checkpoint_directory.new_directory(output) as directory:
        seed = choices.plan.seed
        taught, held_out = training_pairs.split(material.examples, choices.held_out, seed)
        rehearsal = lessons.rehearsed(material.rehearsal, [one.request for one in material.examples], seed)
        checked = round(choices.held_out * len(rehearsal)) if held_out else 0

        engine = loader.open_engine(loader.source.directory)
        was_new, was_unseen = _measured(engine, [material.test or held_out, material.unseen], choices, bar)
        with bar("reading", "texts", len(material.examples) + len(rehearsal)) as move:
            step = partial(_step, move, itertools.count(1))
            learnt, kept = _read(engine, taught, rehearsal[checked:], choices, step)
            checks_learnt, checks_kept = _read(engine, held_out, rehearsal[:checked], choices, step)
        del engine
        gc.collect()  # a large model need not lie in memory twice

        train = partial(_trained, loader, directory.parent, bar, hear)
        first = _Lessons(learnt, kept, choices.rehearsal_share)
        checks = _Lessons(checks_learnt, checks_kept, choices.rehearsal_share)
        checkpoint, plan, epochs = train(first.pairs, checks.pairs, choices.plan)
        new: Report | None = None
        if held_out:
            if not material.test:
                new, _ = _measured(Engine(checkpoint, max_tokens=choices.max_tokens), [held_out, ()], choices, bar)
            del checkpoint
            gc.collect()
            plan = replace(plan, epochs=training.best(epochs, plan))
            checkpoint, plan, _ = train((first + checks).pairs, (), plan)
        checkpoint_directory.write(checkpoint, loader.source.directory, directory)
        del checkpoint
        gc.collect()
        engine = _opened(loader, directory)
        tested, unseen = _measured(engine, [material.test, material.unseen], choices, bar)
        story = Story(
            output=output,
            revision=engine.identity.revision,
            base=loader.source.identity,
            labels=tuple(dict.fromkeys(label for one in material.examples for label in one.request.labels)),
            examples=len(material.examples),
            held_out=len(held_out),
            pairs=len((first + checks).pairs),
            rehearsed=len(rehearsal),
            plan=plan,
            epochs=tuple(epochs),
            new=_compared(was_new, tested if material.test else new),
            is_tested=bool(material.test),
            unseen=_compared(was_unseen, unseen),
            seconds=time.monotonic() - began_s,
        )
        model_card.write(story, loader.source.directory, directory)
    return story


def _compared(before: Report | None, after: Report | None) -> Compared | None:
    return None if before is None or after is None else Compared(before, after)


def _step(move: Callable[[int, int], None], numbers: Iterator[int]) -> None:
    move(1, next(numbers))


def _read(
    engine: Engine,
    examples: Sequence[Asked],
    rehearsal: Sequence[Request],
    choices: Choices,
    step: Callable[[], None],
) -> tuple[list[Pair], list[Pair]]:
    """The pairs that are learnt and those that are rehearsed."""
    return (
        lessons.learnt(engine, examples, choices.negatives, choices.max_tokens, step),
        lessons.kept(engine, rehearsal, choices.max_tokens, step),
    )


def _trained(
    loader: Loader,
    folder: Path,
    bar: Bar,
    hear: Callable[[Epoch], None],
    pairs: Sequence[Pair],
    checks: Sequence[Pair],
    plan: Plan,
) -> tuple[Checkpoint, Plan, list[Epoch]]:
    """The model as it was, trained; the whole plan; and the epochs."""
    checkpoint = loading.load(
        str(loader.source.directory),
        device=loader.device,
        precision="fp32",
        labels=loader.labels,
        self_test="off",
        progress=False,
    )
    whole = training.resolved(checkpoint, plan)
    steps = math.ceil(len(pairs) / whole.batch_pairs) * whole.epochs
    with tempfile.TemporaryDirectory(dir=folder) as scratch, bar("training", "steps", steps) as move:
        done = 0

        def tell(now: int, epoch: Epoch | None) -> None:
            nonlocal done
            move(now - done, now)
            done = now
            if epoch is not None:
                hear(epoch)

        epochs = training.train(checkpoint, pairs, checks, whole, Path(scratch), tell)
    return checkpoint, whole, epochs


def _opened(loader: Loader, directory: Path) -> Engine:
    try:
        return loader.open_engine(directory)
    except CheckpointError as error:
        raise SettingsError(
            f"what was learnt makes a checkpoint that a worker would refuse, so nothing is written: {error}. Learn "
            "less (--interpolation, --epochs, --rate), or rehearse more (--rehearsal, --rehearsal-share)"
        ) from None


def _measured(engine: Engine, groups: Sequence[Sequence[Asked]], choices: Choices, bar: Bar) -> list[Report | None]:
    """What the engine is worth on each of several groups of examples; None for a group of none."""
    found: list[Report | None] = []
    with bar("measuring", "examples", sum(map(len, groups))) as move:
        count = 0
        for group in groups:
            answers = []
            for batch in scoring.scored(engine, group, choices.max_tokens):
                count += len(batch)
                move(len(batch), count)
                for one in batch:
                    if not isinstance(one, Scored):
                        raise SettingsError(f"{one.example.place}: {one.why}")
                    answers.append(scoring.answer(one))
            found.append(quality.report(answers) if answers else None)
    return found
