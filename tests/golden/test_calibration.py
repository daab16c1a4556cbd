"""What a calibration of the shipped checkpoint is worth on sentences that it has not seen: `make acceptance`.

The held-out part of the corpus is in two halves without a sentence in common. A calibration is fitted on each and
measured on the other; figures are of both together.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint import labelled
from worker import settings
from worker.app import load_engine
from worker.endpoint import defaults_of, limits_of
from worker.learn import calibrating, quality, scoring
from worker.learn.calibrating import Fit, Plan
from worker.learn.examples import Example, read
from worker.learn.fitting import Wanted
from worker.learn.quality import Answer, CalibrationError
from worker.learn.scoring import Scored
from worker.messages import Pooling
from worker.rules.calibration import Calibrations

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]

PRECISION = 0.95
APART = 2500  # texts of each half


@cache
def parts() -> Any:
    loaded = settings.load(
        environ={
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": "none",
            "XNLI_MODEL__NAME": "demo",
            "XNLI_MODEL__DEVICE": "cpu",
            "XNLI_MODEL__THREADS": "1",
        }
    )
    return loaded, load_engine(loaded)


def scored(examples: list[Example], fit: Fit | None = None) -> list[Scored]:
    loaded, engine = parts()
    offered = Calibrations()
    if fit is not None:
        made = fit.file.made()
        offered = Calibrations({made.name: made}, made)
    asked = scoring.asked(examples, defaults_of(loaded, Pooling.MEAN, None, offered), limits_of(loaded))
    wanted = calibrating.to_fit(asked, Plan("raw")) if fit is None else asked
    found = [one for batch in scoring.scored(engine, wanted, loaded.batch.max_tokens) for one in batch]
    assert all(isinstance(one, Scored) for one in found)
    return found  # type: ignore[return-value]


def examples(folder: Path, lines: list[dict[str, Any]]) -> list[Example]:
    file = folder / "examples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return read(file)


def measured(folder: Path, halves: list[list[dict[str, Any]]]) -> list[Answer]:
    """The answers to each half by the calibration of the other, with thresholds for `PRECISION`."""
    answers: list[Answer] = []
    read_ = [examples(folder, lines) for lines in halves]
    for fitted, tested in (read_, reversed(read_)):
        assert not {one.text for one in fitted} & {one.text for one in tested}
        plan = Plan("measured", Wanted("precision", PRECISION))
        fit = calibrating.fit(scored(fitted), parts()[1].identity, plan)
        assert not fit.left
        answers += [scoring.answer(one) for one in scored(tested, fit)]
    return answers


def require_calibrated(kind: str, raw: CalibrationError, calibrated: CalibrationError) -> None:
    told = [f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})" for one in (raw, calibrated)]
    print(f"\n{kind}: calibration error {told[0]} raw, {told[1]} calibrated, of {raw.events:,} scores")  # noqa: T201
    assert calibrated.value <= max(raw.value / 2, raw.value if raw.value < 0.03 else 0.0)


def precision_of(kind: str, answers: list[Answer], *, leaves_out: bool) -> tuple[float, int]:
    """The precision of all labels, or of those whose threshold leaves something out; and on how many positives."""
    predicted = right = positives = 0
    for answer in answers:
        thresholds = dict(zip(answer.labels, answer.thresholds, strict=True))
        counted = {label for label, threshold in thresholds.items() if threshold > 0 or not leaves_out}
        given, expected = counted & set(answer.predicted), counted & set(answer.expected)
        predicted, right = predicted + len(given), right + len(given & expected)
        positives += len(expected)
    precision = right / max(1, predicted)
    print(f"{kind}: precision {precision:.4f}, recall {right / max(1, positives):.4f} on {positives:,} positives")  # noqa: T201
    return precision, positives


def require_precision(kind: str, answers: list[Answer]) -> None:
    """What is wanted holds for each label. One that is right more often with nothing left out is better than asked."""
    precision, positives = precision_of(kind, answers, leaves_out=False)
    assert positives >= 450
    assert precision >= PRECISION - 0.02
    precision, positives = precision_of(f"{kind}, where a threshold leaves something out", answers, leaves_out=True)
    if positives >= 450:  # of fewer it is chance
        assert PRECISION - 0.02 <= precision <= PRECISION + 0.02


def test_labels_that_compete(tmp_path: Path) -> None:
    answers = measured(tmp_path, [list(labelled.competing(part)) for part in range(labelled.PARTS)])
    report = quality.report(answers)
    assert report.raw_calibration_error is not None
    require_calibrated("competing", report.raw_calibration_error, report.calibration_error)
    require_precision("competing", answers)


def test_labels_judged_each_on_its_own(tmp_path: Path) -> None:
    answers = measured(tmp_path, [list(labelled.apart(part, APART)) for part in range(labelled.PARTS)])
    report = quality.report(answers)
    assert report.raw_calibration_error is not None
    require_calibrated("apart", report.raw_calibration_error, report.calibration_error)
    require_precision("apart", answers)
