"""`evaluate` and `calibrate`: what the model is worth on labelled examples, and its scores as probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.grouping import Section
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("The model on labelled examples.")

_File = Annotated[
    str | None,
    typer.Argument(metavar="[FILE]", help="JSON lines with expected, or CSV: text,label; - is stdin"),
]
_Topic = Annotated[
    str | None, typer.Option("--topic", metavar="TOPIC", help="requests with an attribute expected, in place of FILE")
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="M", help="a hub id, a directory or demo, in place of model.name")
]
Labels = Annotated[
    str, typer.Option("--labels", "-l", metavar="A,B,C", help="candidates (default: all labels expected anywhere)")
]
LabelSet = Annotated[
    Path | None, typer.Option("--label-set", metavar="FILE", help="candidates of a label set's file, TOML or JSON")
]
MultiLabel = Annotated[bool, typer.Option("--multi-label", help="judge each label by itself; in CSV a|b names two")]
Template = Annotated[
    str | None, typer.Option("--template", metavar="T", help='the hypothesis of a label: "This text is about {}."')
]


@grouping.command(
    app,
    "evaluate",
    section=Section.QUALITY,
    examples=[
        "xnli-worker evaluate examples.csv",
        "xnli-worker evaluate examples.jsonl --model demo --page quality.png",
        "xnli-worker evaluate --topic labelled-requests -c worker.toml --json",
    ],
)
def evaluate(
    file: _File = None,
    topic: _Topic = None,
    model: Model = None,
    labels: Labels = "",
    label_set: LabelSet = None,
    multi_label: MultiLabel = False,
    template: Template = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="a calibration, in place of model.calibration")
    ] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE.png", help="draw the report as one page too")] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Precision, recall, F1, calibration and abstention on labelled examples."""
    stop = StopFlag("reporting what is done")
    from worker.commands.evaluate import evaluate as measure  # noqa: PLC0415
    from worker.commands.labelled import Given  # noqa: PLC0415

    given = Given(file, topic, config, model, labels, label_set, multi_label, template)
    return 0 if measure(given, stop, calibration=calibration, page=page, as_json=as_json) else 1


@grouping.command(
    app,
    "calibrate",
    section=Section.QUALITY,
    examples=[
        "xnli-worker calibrate examples.csv --output topics.json",
        "xnli-worker calibrate a.csv -o a.json --multi-label --precision 0.95",
        "xnli-worker calibrate a.jsonl -o a.json --best-f1 --precision threat=0.9",
    ],
)
def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the calibration to write, JSON")],
    file: _File = None,
    topic: _Topic = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="what label sets call it (default: FILE's name)")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(metavar="P", help="thresholds for this precision: 0.95, or LABEL=0.95")
    ] = None,
    recall: Annotated[
        list[str] | None, typer.Option(metavar="R", help="thresholds for this recall: 0.9, or LABEL=0.9")
    ] = None,
    best_f1: Annotated[bool, typer.Option("--best-f1", help="thresholds of the best F1")] = False,
    model: Model = None,
    labels: Labels = "",
    label_set: LabelSet = None,
    multi_label: MultiLabel = False,
    template: Template = None,
    folds: Annotated[int, typer.Option(metavar="N", min=2, max=50, help="held out in turn")] = 5,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="draws the folds")] = 0,
    force: Annotated[bool, typer.Option("--force", help="replace the file if it is there")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """Fit probabilities to scores, and thresholds to what you want of them."""
    stop = StopFlag("stopping")
    from worker.commands.calibrate import calibrate as fit  # noqa: PLC0415
    from worker.commands.labelled import Given  # noqa: PLC0415

    given = Given(file, topic, config, model, labels, label_set, multi_label, template)
    done = fit(
        given,
        output,
        stop,
        name=name,
        precision=precision or [],
        recall=recall or [],
        best_f1=best_f1,
        folds=folds,
        seed=seed,
        replaces=force,
        as_json=as_json,
    )
    return 0 if done else 1
