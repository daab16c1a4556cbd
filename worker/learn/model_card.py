"""What an adapted checkpoint says of itself: README.md for people and model hubs, adaptation.json for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

from worker import __version__
from worker.learn.quality import Report
from worker.learn.training import Epoch, Plan
from worker.messages import ModelIdentity

README: Final = "README.md"
RECORD: Final = "adaptation.json"
_LIBRARIES: Final = ("torch", "transformers", "accelerate", "peft")
_INHERITED: Final = ("language", "license", "license_name", "license_link")
_METHODS: Final = {
    "lora": "LoRA of rank {rank} on every linear layer, merged into the weights",
    "layers": "layers {layers} and the head",
    "full": "all weights",
}
_CARD: Final = """\
---
{header}
---
# {name}

An NLI checkpoint for zero-shot classification: {base}, adapted by `xnli-worker adapt` to {count} labels.
Served by xnli-worker it has the revision {revision}.

## What was learnt
Labels: {labels}.

- {examples} labelled examples, of which {held_out} were held out at first, to tell for how long to train; {rehearsed}
  texts rehearsed, so that what the model says of other labels stays.
- {pairs} NLI pairs. Trained: {trained}. Weights went {interpolation:.0%} of the way to those trained.
- Seed {seed}, learning rate {rate}, {batch} pairs a step, {epochs} epochs{tried}; {seconds} s.

## Before and after
{table}

{note}The figures of each label, and of each epoch, are in `{record}`. Probabilities are not calibrated, and a
calibration of the former checkpoint does not hold for this one.
"""
_NOTE: Final = """\
The labels that were learnt are measured on the examples held out, before the model learnt from these too. They told for
how long to train, so the figures flatter a little.
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """The same examples before and after."""

    before: Report
    after: Report


@dataclass(frozen=True, slots=True)
class Story:
    """What was done to a checkpoint, and what it came to.

    Attributes:
        output: the directory.
        revision: of what was written, as results will carry it.
        base: the checkpoint that it was.
        labels: that were learnt.
        examples: labelled ones, of which ``held_out`` told for how long to train.
        held_out: see ``examples``.
        pairs: that were trained on, those rehearsed included.
        rehearsed: texts.
        plan: how; its epochs are those of the weights that were written.
        epochs: those that showed for how long to train; where nothing is held out, those that were run.
        new: the labels that were learnt; None if there was nothing to measure.
        is_tested: ``new`` rests on examples that took no part. Otherwise on those held out, and on the model before it
            learnt from them too.
        unseen: other labels; None if there was nothing to measure.
        seconds: all of it.
    """

    output: Path
    revision: str
    base: ModelIdentity
    labels: tuple[str, ...]
    examples: int
    held_out: int
    pairs: int
    rehearsed: int
    plan: Plan
    epochs: tuple[Epoch, ...]
    new: Compared | None
    is_tested: bool
    unseen: Compared | None
    seconds: float


def record(story: Story) -> dict[str, Any]:
    """The story as JSON."""
    return {
        "base": {"name": story.base.name, "revision": story.base.revision},
        "revision": story.revision,
        "labels": list(story.labels),
        "examples": story.examples,
        "held_out": story.held_out,
        "pairs": story.pairs,
        "rehearsed_texts": story.rehearsed,
        "plan": asdict(story.plan) | {"layers": list(story.plan.layers)},
        "epochs": [asdict(epoch) for epoch in story.epochs],
        "new_labels": _figures(story.new),
        "new_labels_took_no_part": story.is_tested,
        "unseen_labels": _figures(story.unseen),
        "seconds": round(story.seconds, 1),
        "versions": {"xnli-worker": __version__} | {library: version(library) for library in _LIBRARIES},
    }


def _figures(compared: Compared | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {
        "examples": compared.before.examples,
        "before": _report(compared.before),
        "after": _report(compared.after),
    }


def _report(report: Report) -> dict[str, Any]:
    return {
        "macro_f1": round(report.macro_f1, 4),
        "accuracy": round(report.accuracy, 4),
        "calibration_error": round(report.calibration_error.value, 4),
        "labels": {label: round(one.f1, 4) for label, one in report.labels.items() if one.support or one.predicted},
    }


def write(story: Story, source: Path, directory: Path) -> None:
    """Write both files. Neither is part of the revision.

    Args:
        story: what they tell.
        source: the directory of the checkpoint that it was, whose card may name a licence and languages.
        directory: where to write.
    """
    (directory / RECORD).write_text(json.dumps(record(story), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (directory / README).write_text(card(story, _inherited(source / README)), encoding="utf-8")


def card(story: Story, inherited: Mapping[str, Any]) -> str:
    """The model card. ``inherited``: what of the former card's header holds for this one."""
    header = {
        **inherited,
        "base_model": story.base.name,
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-classification",
    }
    plan = story.plan
    return _CARD.format(
        header=yaml.safe_dump(header, allow_unicode=True, sort_keys=False).strip(),
        name=story.output.name,
        base=f"{story.base.name} at {story.base.revision}",
        revision=story.revision,
        count=len(story.labels),
        labels=", ".join(_quoted(label) for label in story.labels),
        examples=story.examples,
        held_out=story.held_out,
        rehearsed=story.rehearsed,
        pairs=story.pairs,
        trained=_METHODS[plan.method].format(rank=plan.rank, layers=", ".join(map(str, plan.layers))),
        interpolation=plan.interpolation,
        seed=plan.seed,
        rate=f"{plan.learning_rate:.3g}",
        batch=plan.batch_pairs,
        epochs=plan.epochs,
        tried=f" of {len(story.epochs)} that were tried (early stopping)" if story.held_out else "",
        seconds=round(story.seconds),
        table="\n".join(_table(story)),
        note=_NOTE if story.new is not None and not story.is_tested else "",
        record=RECORD,
    )


def _table(story: Story) -> list[str]:
    rows = [("labels that were learnt", story.new), ("other labels", story.unseen)]
    lines = ["| | examples | macro-F1 before | after | accuracy before | after |", "|---|---:|---:|---:|---:|---:|"]
    for name, compared in rows:
        if compared is None:
            lines.append(f"| {name} | none | | | | |")
            continue
        before, after = compared.before, compared.after
        lines.append(
            f"| {name} | {before.examples} | {before.macro_f1:.1%} | {after.macro_f1:.1%} "
            f"| {before.accuracy:.1%} | {after.accuracy:.1%} |"
        )
    return lines


def _quoted(label: str) -> str:
    return "`" + " ".join(label.replace("`", "'").split()) + "`"


def _inherited(readme: Path) -> dict[str, Any]:
    """What of the header of a former card holds on. A card that cannot be read says nothing."""
    try:
        text = readme.read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return {name: header[name] for name in _INHERITED if name in header} if isinstance(header, dict) else {}
