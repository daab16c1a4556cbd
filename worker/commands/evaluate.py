"""`xnli-worker evaluate`: what the model is worth on labelled examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from worker import screen, terminal
from worker.commands.connection import say
from worker.commands.json_lines import is_wanted, json_line
from worker.commands.labelled import Given, Labelled
from worker.learn import calibration_file, extra, quality, quality_page, scoring
from worker.learn.quality import CalibrationError, Quality, Report
from worker.messages import ModelIdentity
from worker.screen import Cell, Screen, plural
from worker.telemetry import log

_MOST_LABELS: Final = 40
_MOST_CONFUSED: Final = 5
_LABEL_COLUMNS: Final = 32
_COVERED: Final = (1.0, 0.9, 0.75, 0.5)
_HEAD: Final = ("precision", "recall", "F1", "examples")


def evaluate(
    given: Given,
    stop_requested: Callable[[], bool],
    *,
    calibration: Path | None = None,
    page: Path | None = None,
    as_json: bool = False,
) -> bool:
    """Score labelled examples and report. False if some were not scored; the report is then of the others.

    Args:
        given: The examples.
        stop_requested: Ends it early: what is done is reported.
        calibration: In place of ``model.calibration``.
        page: Where to draw the report as a PNG.
        as_json: JSON on a terminal too.

    Raises:
        SettingsError: settings, examples or calibration are wrong, or the extra ``learn`` is not installed.
        BrokerAway, TopicMissing: there is no topic to read from.
    """
    if page is not None:
        extra.require("matplotlib")
        quality_page.require_place(page)
    log.configure("warning", "console", sys.stderr)
    labelled = Labelled(given, stop_requested)
    named = labelled.settings.model.calibration if calibration is None else str(calibration)
    files = [] if named is None else calibration_file.read(Path(named))
    engine = labelled.engine()
    asked = labelled.asked
    if files:
        asked = labelled.requests(calibration_file.of_model(files, engine.identity))
    scored, is_whole = labelled.score(engine, asked, stop_requested)
    if not scored:
        say("no example was scored: there is nothing to report")
        return False
    report = quality.report([scoring.answer(one) for one in scored])
    if files and report.raw_calibration_error is None:
        say("the calibration knows none of these labels by these hypotheses: scores are raw")
    _show(report, engine.identity, len(asked), as_json=as_json)
    if page is not None:
        source = given.topic if given.file is None else "stdin" if given.file == "-" else Path(given.file).name
        title = f"{engine.identity.name} at {engine.identity.revision} on {report.examples:,} examples of {source}"
        quality_page.write(report, title, page)
        say(f"the page is in {page}")
    return is_whole


def _show(report: Report, model: ModelIdentity, asked: int, *, as_json: bool) -> None:
    if is_wanted(as_json):
        datum: dict[str, Any] = {"model": {"name": model.name, "revision": model.revision}, "asked": asked}
        sys.stdout.buffer.write(json_line(json.loads(json.dumps(datum | asdict(report)))))
        sys.stdout.buffer.flush()
        return
    out = Screen()
    out.line(f"{terminal.harmless(model.name)} at {model.revision}, {plural(report.examples, 'example')}")
    _table(out, "label", report.labels)
    if len(report.languages) > 1 or quality.UNKNOWN_LANGUAGE not in report.languages:
        _table(out, "language", report.languages)
    out.line("")
    silent = f", {report.abstained:,} without a label" if report.abstained else ""
    out.line(f"  macro F1 {report.macro_f1:.3f}, accuracy {report.accuracy:.3f}{silent}", screen.BOLD)
    out.line(f"  calibration error {_error(report.calibration_error)}; Brier {report.brier:.4f}")
    if report.raw_calibration_error is not None:
        out.line(f"  raw scores: calibration error {_error(report.raw_calibration_error)}")
    _curve(out, report)
    _confused(out, report)
    sys.stdout.flush()


def _table(out: Screen, kind: str, rows: dict[str, Quality]) -> None:
    shown = sorted(rows.items(), key=lambda row: -row[1].support)[:_MOST_LABELS]
    names = [terminal.harmless(name) for name, _ in shown]
    columns = min(_LABEL_COLUMNS, max([screen.width(name) for name in names] + [len(kind)]))
    widths = [0, columns, 9, 6, 6]
    out.line("")
    out.row(["", *(Cell(word, screen.DIM) for word in (kind, *_aligned(_HEAD)))], widths)
    for name, (_, one) in zip(names, shown, strict=True):
        figures = (f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.support:,}")
        out.row(["", name, *_aligned(figures)], widths)
    if len(rows) > len(shown):
        out.line(f"  and {len(rows) - len(shown):,} more, which --json shows", screen.DIM)


def _aligned(figures: Sequence[str]) -> list[str]:
    return [figure.rjust(columns) for figure, columns in zip(figures, (9, 6, 6, 8), strict=True)]


def _error(error: CalibrationError) -> str:
    return f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f}), {error.bins} bins of {error.events:,} scores"


def _curve(out: Screen, report: Report) -> None:
    """What the surest decisions are worth."""
    points = [min(report.coverage, key=lambda point: abs(point.coverage - wanted)) for wanted in _COVERED]
    told = list(dict.fromkeys(f"{point.coverage:.0%}: {point.accuracy:.3f}" for point in points))
    out.line(f"  accuracy of the surest {', '.join(told)}")


def _confused(out: Screen, report: Report) -> None:
    wrong = [one for one in report.confusion if one.expected != one.predicted and one.expected is not None]
    if not wrong:
        return
    out.line("")
    out.line("  most often, where the left was expected, the right was predicted:", screen.DIM)
    for one in wrong[:_MOST_CONFUSED]:
        names = (terminal.harmless(one.expected or ""), terminal.harmless(one.predicted or "no label"))
        out.line(f"  {screen.isolated(names[0])} → {screen.isolated(names[1])}  {one.count:,}")
