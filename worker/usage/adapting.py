"""`adapt`: what a person teaches a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from worker.errors import SettingsError
from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.grouping import Section
from worker.usage.learning import Labels, LabelSet, Model, MultiLabel, Template
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("What a model is worth, and what it may learn.")


# size: an option is a line or three, and they are the command's interface.
@grouping.command(
    app,
    "adapt",
    section=Section.QUALITY,
    examples=[
        "xnli-worker adapt examples.csv --output my-model",
        "xnli-worker adapt examples.jsonl --test test.jsonl --output my-model",
        "xnli-worker adapt examples.jsonl --rehearsal requests.jsonl -o my-model",
    ],
)
def adapt(
    examples: Annotated[
        str, typer.Argument(metavar="EXAMPLES", help="JSON lines with expected, or CSV: text,label; - is stdin")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="the directory to write; a new one")],
    model: Model = None,
    labels: Labels = "",
    label_set: LabelSet = None,
    multi_label: MultiLabel = False,
    template: Template = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="examples to measure on (default: those held out)")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(metavar="FILE", help="examples of other labels, to measure what is lost")
    ] = None,
    rehearsal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="requests whose answers should stay (default: samples)")
    ] = None,
    method: Annotated[
        Literal["lora", "layers", "full"], typer.Option(help="what is trained: additions, some layers, or all")
    ] = "lora",
    layers: Annotated[
        str | None, typer.Option(metavar="N,M", help="with layers: which, counted from 0 (default: the last half)")
    ] = None,
    rank: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="with lora: the rank of the additions")] = 16,
    interpolation: Annotated[
        float, typer.Option(metavar="S", min=0.01, max=1.0, help="way from the former weights to those trained")
    ] = 0.5,
    rate: Annotated[
        float | None, typer.Option(metavar="R", min=1e-9, max=1.0, help="learning rate (default: by the model's width)")
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="passes over the pairs, at most")] = 12,
    held_out: Annotated[
        float, typer.Option(metavar="S", min=0.0, max=0.9, help="share of examples that tells for how long to train")
    ] = 0.25,
    negatives: Annotated[
        int, typer.Option(metavar="N", min=1, max=4096, help="rivals of a text at most, the hardest first")
    ] = 6,
    rehearsal_share: Annotated[
        float, typer.Option(metavar="S", min=0.0, max=0.95, help="of the loss, that keeps what the model knew")
    ] = 0.75,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="of all that is drawn")] = 0,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """A checkpoint learns labels from examples, and keeps what it knew; written as a new one."""
    chosen = _layers(layers)
    if chosen and method != "layers":
        raise SettingsError("--layers: say --method layers as well, or leave it out")
    StopFlag(interrupt=True)
    from worker.commands import adapt as command  # noqa: PLC0415
    from worker.commands.adaptation_texts import Files  # noqa: PLC0415
    from worker.commands.labelled import Given  # noqa: PLC0415

    command.adapt(
        Given(examples, None, config, model, labels, label_set, multi_label, template),
        Files(test, unseen, rehearsal),
        output,
        command.Options(
            held_out=held_out,
            negatives=negatives,
            rehearsal_share=rehearsal_share,
            plan={
                "method": method,
                "layers": chosen,
                "rank": rank,
                "interpolation": interpolation,
                "learning_rate": rate,
                "epochs": epochs,
                "seed": seed,
            },
        ),
        as_json=as_json,
    )
    return 0


def _layers(option: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in option.split(",")) if option else ()
    except ValueError:
        raise SettingsError(f'--layers {option}: write numbers with commas between, as in "10,11"') from None
