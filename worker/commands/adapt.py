"""`xnli-worker adapt`: a checkpoint learns labels from examples."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker import screen, streams, terminal
from worker.commands import adaptation_texts
from worker.commands.adaptation_texts import Files
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted, json_line
from worker.commands.labelled import Given
from worker.commands.progress import progress_bar
from worker.learn import checkpoint_directory, extra
from worker.screen import Cell, Screen
from worker.settings import Settings
from worker.telemetry import log

if TYPE_CHECKING:
    from worker.learn.model_card import Compared, Story
    from worker.learn.training import Epoch

_WORSE: Final = 0.02  # of macro-F1 of other labels, of which a person is told
_LABEL_COLUMNS: Final = 32


@dataclass(frozen=True, slots=True)
class Options:
    """What a person may choose of how a model learns. ``plan`` are fields of `worker.learn.training.Plan`."""

    held_out: float
    negatives: int
    rehearsal_share: float
    plan: Mapping[str, Any]


def adapt(given: Given, files: Files, output: Path, options: Options, *, as_json: bool) -> None:
    """Adapt a checkpoint and write it to a directory of its own.

    Args:
        given: the examples and the model.
        files: the other texts.
        output: the directory to write.
        options: how to learn.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: settings, texts or options will not do. Nothing is written.
        FatalError: the directory could not be written.
    """
    extra.require("accelerate", "peft", "scikit-learn")
    checkpoint_directory.require_none(output)
    settings, texts = adaptation_texts.read(given, files)
    log.configure("error", "console", sys.stderr)
    # These import torch: what was typed wrongly is told before.
    from worker.app import load_engine  # noqa: PLC0415
    from worker.inference import source  # noqa: PLC0415
    from worker.learn import adaptation, model_card, training  # noqa: PLC0415

    shown_as_json = is_wanted(as_json)

    def hear(epoch: Epoch) -> None:
        if shown_as_json:
            _write(asdict(epoch))

    story = adaptation.adapt(
        adaptation.Loader(
            source.find(settings.model.name, settings.model.revision, progress=None, attempts=5, sleep=time.sleep),
            lambda directory: load_engine(_of(settings, directory)),
            settings.model.device,
            settings.model.labels,
        ),
        adaptation.Material(texts.examples, texts.test, texts.unseen, texts.rehearsal),
        output,
        adaptation.Choices(
            training.Plan(**options.plan),
            options.held_out,
            options.negatives,
            options.rehearsal_share,
            settings.batch.max_tokens,
        ),
        progress_bar,
        hear,
    )
    if shown_as_json:
        _write({"output": str(output)} | model_card.record(story))
    else:
        with streams.reporting():
            _show(story)
    if story.unseen is not None and (lost := story.unseen.before.macro_f1 - story.unseen.after.macro_f1) > _WORSE:
        say(
            f"other labels lost {lost:.1%} of macro-F1: rehearse texts of your own stream (--rehearsal), give the "
            "rehearsal more weight (--rehearsal-share), or go less far (--interpolation)"
        )


def _of(settings: Settings, directory: Path) -> Settings:
    """The settings for the checkpoint of a directory, without what is calibrated for another."""
    model = settings.model.model_copy(update={"name": str(directory), "revision": None, "calibration": None})
    return settings.model_copy(update={"model": model})


def _write(shown: Mapping[str, Any]) -> None:
    """A line on stdout. Where that takes none, training goes on, and the checkpoint is written."""
    with streams.reporting():
        sys.stdout.write(json_line(shown).decode())
        sys.stdout.flush()


def _show(story: Story) -> None:
    out = Screen()
    widths = (_LABEL_COLUMNS, 9, 8, 8)
    out.row([Cell("macro-F1", screen.BOLD), "examples", "before", "after", ""], widths)
    for name, compared in (("labels that were learnt", story.new), ("other labels", story.unseen)):
        if compared is None:
            out.row([name, "none", "", "", ""], widths)
            continue
        _row(out, widths, name, compared)
    if story.new is not None:
        before, after = story.new.before.labels, story.new.after.labels
        for label in story.labels:
            was, now = before.get(label), after.get(label)
            if was is not None and now is not None and (was.support or now.predicted):
                cells = [f"  {terminal.harmless(label)}", f"{was.support:,}", f"{was.f1:.1%}", f"{now.f1:.1%}", ""]
                out.row([Cell(cell, screen.DIM) for cell in cells], widths)
        if not story.is_tested:
            out.words("measured on the examples held out, before they were learnt too; --test names others", screen.DIM)
    tried = f" of {len(story.epochs)} tried" if story.held_out else ""
    out.line(f"{story.pairs:,} pairs, {screen.plural(story.plan.epochs, 'epoch')}{tried}; {story.seconds:.0f} s")
    out.line(f"{terminal.harmless(str(story.output))} is written, revision {story.revision}")
    sys.stdout.flush()


def _row(out: Screen, widths: tuple[int, ...], name: str, compared: Compared) -> None:
    before, after = compared.before, compared.after
    gain = after.macro_f1 - before.macro_f1
    style = screen.GREEN if gain > 0 else screen.RED if gain < -_WORSE else ""
    out.row(
        [
            name,
            f"{before.examples:,}",
            f"{before.macro_f1:.1%}",
            Cell(f"{after.macro_f1:.1%}", style),
            Cell(f"{100 * gain:+.1f} points", style),
        ],
        widths,
    )
