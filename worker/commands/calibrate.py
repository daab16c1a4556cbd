"""`xnli-worker calibrate`: scores become probabilities, and thresholds what somebody wants of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from worker import screen, streams, terminal
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted, json_line
from worker.commands.labelled import Given, Labelled
from worker.errors import SettingsError
from worker.learn import calibrating, calibration_file
from worker.learn.calibrating import Fit, Plan
from worker.learn.calibration_file import Label, PlattCurve
from worker.learn.fitting import Reached, Wanted
from worker.screen import Cell, Screen
from worker.telemetry import log

_MOST_LABELS: Final = 40
_LABEL_COLUMNS: Final = 32


def calibrate(
    given: Given,
    output: Path,
    stop_requested: Callable[[], bool],
    *,
    name: str | None = None,
    precision: Sequence[str] = (),
    recall: Sequence[str] = (),
    best_f1: bool = False,
    folds: int,
    seed: int,
    replaces: bool = False,
    as_json: bool = False,
) -> bool:
    """Fit a calibration and write it. Without all examples scored nothing is written: True, or an error.

    Args:
        given: The examples.
        output: The file to write.
        stop_requested: Ends it early.
        name: What label sets call it; by default the file's name without its suffix.
        precision: Wanted of each label, as 0.95, or of one, as LABEL=0.95.
        recall: Likewise.
        best_f1: Thresholds of the best F1, for labels of which nothing else is wanted.
        folds: How many are held out in turn.
        seed: Draws them.
        replaces: The file may be there already.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: settings, examples or wishes are wrong, or the extra ``learn`` is not installed.
        BrokerAway, TopicMissing: there is no topic to read from.
    """
    wanted, of_label = wishes(precision, recall, best_f1=best_f1)
    calibration_file.require_free(output, replaces=replaces)
    log.configure("warning", "console", sys.stderr)
    labelled = Labelled(given, stop_requested)
    template = labelled.settings.model.hypothesis_template
    plan = Plan(name or output.stem, wanted, of_label, folds, seed, template)
    asked = calibrating.to_fit(labelled.asked, plan)
    engine = labelled.engine()
    scored, is_whole = labelled.score(engine, asked, stop_requested)
    if not is_whole and stop_requested():
        say("nothing is written")
        return False
    fit = calibrating.fit(scored, engine.identity, plan)
    calibration_file.write(fit.file, output, replaces=replaces)
    with streams.reporting():
        _show(fit, output, as_json=as_json)
    return True


def wishes(
    precision: Sequence[str], recall: Sequence[str], *, best_f1: bool
) -> tuple[Wanted | None, dict[str, Wanted]]:
    """What is wanted of all labels, and of single ones.

    Raises:
        SettingsError: a wish is no number in (0, 1], or two are for the same labels.
    """
    of_all: Wanted | None = None
    of_label: dict[str, Wanted] = {}
    for option, given in (("--precision", precision), ("--recall", recall)):
        for wish in given:
            label, equals, number = wish.rpartition("=")
            wanted = Wanted("precision" if option == "--precision" else "recall", _share(option, wish, number))
            if not equals:
                if of_all is not None:
                    raise SettingsError(f"{option} {wish}: of all labels something is wanted already; name one of them")
                of_all = wanted
            elif label in of_label:
                raise SettingsError(f"{option} {wish}: of this label something is wanted already; keep one")
            else:
                of_label[label] = wanted
    if best_f1 and of_all is not None:
        raise SettingsError("--best-f1: of all labels something is wanted already; keep one")
    return Wanted("f1") if best_f1 else of_all, of_label


def _share(option: str, wish: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise SettingsError(f"{option} {wish}: write a share above 0 and up to 1, as 0.95 or LABEL=0.95")
    return value


def _show(fit: Fit, output: Path, *, as_json: bool) -> None:
    if is_wanted(as_json):
        sys.stdout.buffer.write(json_line(_datum(fit, output)))
        sys.stdout.buffer.flush()
        return
    out, file = Screen(), fit.file
    out.line(f"{terminal.harmless(file.model.name)} at {file.model.revision}, calibration {file.name}")
    if file.temperature is not None:
        out.line(f"  the labels compete: temperature {file.temperature:.3f}")
    shown = file.labels[:_MOST_LABELS]
    columns = min(_LABEL_COLUMNS, max([screen.width(terminal.harmless(one.label)) for one in shown] + [5]))
    widths = [0, columns, 8, 9, 9, 9]
    head = ("label", "expected", "curve", "threshold", "precision", "recall")
    out.line("")
    out.row(["", *(Cell(word, screen.DIM) for word in head)], widths)
    for one in shown:
        out.row(["", *_cells(one, fit.reached.get(one.label))], widths)
    if len(file.labels) > len(shown):
        out.line(f"  and {len(file.labels) - len(shown):,} more, which the file has", screen.DIM)
    out.line("")
    before, after = fit.before, fit.after
    told = f"{before.value:.3f} raw, {after.value:.3f} ({after.low:.3f} to {after.high:.3f}) calibrated"
    out.line(f"  calibration error, held out: {told}", screen.BOLD)
    for line in _warnings(fit):
        out.words(line, screen.MAGENTA, indent=screen.GAP)
    written = terminal.harmless(str(output))
    told = f"written to {written}; name it in model.calibration, or a folder that it lies in"
    out.words(told, indent=screen.GAP)
    sys.stdout.flush()


def _warnings(fit: Fit) -> Iterator[str]:
    for label, why in fit.left.items():
        yield f"{terminal.harmless(label)} is not calibrated: {why}"
    if missed := [label for label, one in fit.reached.items() if not one.is_met]:
        reason = "out of reach, or too few examples to be sure of it; the nearest threshold stands there"
        yield f"{_named(missed)}: what was wanted is {reason}"
    if fit.silent:
        yield f"too few examples for a threshold: {_named(fit.silent)}"


def _named(labels: Sequence[str]) -> str:
    left = len(labels) - _MOST_LABELS
    return ", ".join(map(terminal.harmless, labels[:_MOST_LABELS])) + (f" and {left:,} more" if left > 0 else "")


def _cells(one: Label, reached: Reached | None) -> list[Cell | str]:
    curve = "" if one.curve is None else "line" if isinstance(one.curve, PlattCurve) else "isotonic"
    figures = ["", "", ""]
    if reached is not None:
        figures = [f"{reached.threshold:9.3f}", f"{reached.precision:9.3f}", f"{reached.recall:6.3f}"]
    style = "" if reached is None or reached.is_met else screen.MAGENTA
    return [terminal.harmless(one.label), f"{one.positives:8,}", curve, *(Cell(text, style) for text in figures)]


def _datum(fit: Fit, output: Path) -> dict[str, Any]:
    file = fit.file
    return {
        "file": str(output),
        "name": file.name,
        "model": {"name": file.model.name, "revision": file.model.revision},
        "temperature": file.temperature,
        "calibration_error": {
            "raw": fit.before.value,
            "held_out": fit.after.value,
            "low": fit.after.low,
            "high": fit.after.high,
        },
        "labels": [
            {
                "label": one.label,
                "method": None if one.curve is None else one.curve.method,
                "positives": one.positives,
                "threshold": one.threshold,
                "precision": one.precision,
                "recall": one.recall,
                "is_met": None if (reached := fit.reached.get(one.label)) is None else reached.is_met,
            }
            for one in file.labels
        ],
        "uncalibrated": dict(fit.left),
        "without_threshold": list(fit.silent),
    }
