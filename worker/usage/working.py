"""`run`, `demo`, `check` and `bench`: the worker itself, and what shows that it works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from worker import __version__
from worker.errors import SettingsError
from worker.process import StopFlag
from worker.usage import grouping
from worker.usage.grouping import Section
from worker.usage.options import ConfigFile, Json

app: Final = grouping.group("The worker.")


@grouping.command(app, "demo", section=Section.FIRST, examples=["xnli-worker demo", "xnli-worker demo --all"])
def demo(
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="messages to send (default: all samples)")
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="every message, and the whole advice of dead letters")
    ] = False,
    as_json: Json = False,
) -> int:
    """Broker, worker, model and sample messages on this machine; nothing to install."""
    from worker.demo.play import play  # noqa: PLC0415

    stop = StopFlag("stopping")
    return 0 if play(count, show_all=show_all, as_json=as_json, stop_requested=stop) else 1


@grouping.command(
    app,
    "classify",
    section=Section.FIRST,
    examples=[
        'xnli-worker classify "Interest rates were raised." --labels finance,sport',
        "xnli-worker classify --labels spam,harmless --json < texts.txt",
        'xnli-worker classify "Nice here. You fool!" -l insult,praise --evidence 1',
        'xnli-worker classify "Is it lost?" -l yes,no --url http://127.0.0.1:9400',
    ],
)
def classify(
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="the text; without it, or with -, each line of stdin")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", "-l", metavar="A,B,C", help="candidates; a JSON array if they hold commas")
    ] = None,
    label_set: Annotated[
        Path | None, typer.Option("--label-set", metavar="FILE", help="a file of candidates instead, a JSON array")
    ] = None,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="score each label by itself")] = False,
    template: Annotated[
        str | None, typer.Option(metavar="T", help='the hypothesis of a label, as in "This text is about {}."')
    ] = None,
    evidence: Annotated[
        int, typer.Option(metavar="N", min=0, help="show the N parts of the text that speak most for each label")
    ] = 0,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="ask the worker that runs there, in place of a model here")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> int:
    """One text, or a text a line, against labels of your own; no broker."""
    if (labels is None) == (label_set is None):
        raise SettingsError("--labels or --label-set: name the candidates by one of the two")
    StopFlag(interrupt=True)
    from worker.commands.classify import classify as score  # noqa: PLC0415

    done = score(
        text,
        config,
        labels=labels or "",
        label_set=label_set,
        multi_label=multi_label,
        template=template,
        evidence=evidence,
        url=url,
        as_json=as_json,
    )
    return 0 if done else 1


@grouping.command(app, "broker", section=Section.FIRST, examples=["xnli-worker broker", "xnli-worker broker --port 0"])
def broker(
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65_535, help="where it listens; 0: any free port")
    ] = 9092,
    config: ConfigFile = None,
) -> int:
    """A broker for trials on this machine, in the foreground; nothing to install."""
    from worker.commands.broker import broker as serve  # noqa: PLC0415

    return 0 if serve(config, port, StopFlag("ending")) else 1


@grouping.command(app, "run", section=Section.WORK, examples=["xnli-worker run --config worker.toml"])
def run(config: ConfigFile = None) -> int:
    """Consume requests, produce results, until SIGTERM, SIGINT or SIGHUP."""
    # First: process 1 of a container that handles no signal does not even end by one.
    stop = StopFlag("draining", hears_hang_up=True)
    import structlog  # noqa: PLC0415

    from worker import settings  # noqa: PLC0415
    from worker.telemetry import log  # noqa: PLC0415

    loaded = settings.load(config)
    log.configure(loaded.log.level, loaded.log.format, sys.stderr)
    structlog.get_logger("worker").info(
        "starting", version=__version__, model=loaded.model.name, broker=loaded.kafka.bootstrap_servers
    )
    from worker.app import App  # noqa: PLC0415

    if loaded.model.reload != "off":
        stop.reload_on_hang_up()
    return 0 if App(loaded, reload_asked=stop.reload_asked).run(stop) else 1


@grouping.command(
    app,
    "serve",
    section=Section.WORK,
    examples=[
        "xnli-worker serve",
        "xnli-worker serve --config worker.toml",
        "xnli-worker serve --label-sets moderation.toml --label-sets moods.json",
    ],
)
def serve(
    config: ConfigFile = None,
    label_sets: Annotated[
        list[Path] | None,
        typer.Option("--label-sets", metavar="FILE", help="TOML or JSON: a set, or several; may be given again"),
    ] = None,
) -> int:
    """Answer requests over HTTP, without Kafka, until SIGTERM, SIGINT or SIGHUP."""
    stop = StopFlag("draining", hears_hang_up=True)
    import structlog  # noqa: PLC0415

    from worker.commands.served import served_label_sets, served_settings  # noqa: PLC0415
    from worker.telemetry import log  # noqa: PLC0415

    loaded = served_settings(config)
    log.configure(loaded.log.level, loaded.log.format, sys.stderr)
    sets = served_label_sets(label_sets or [], loaded)
    structlog.get_logger("worker").info("starting", version=__version__, model=loaded.model.name)
    from worker.serve import Server  # noqa: PLC0415

    if loaded.model.reload != "off":
        stop.reload_on_hang_up()
    return 0 if Server(loaded, label_sets=sets, reload_asked=stop.reload_asked).run(stop) else 1


@grouping.command(app, "check", section=Section.OPERATE, examples=["xnli-worker check --config worker.toml"])
def check(config: ConfigFile = None, as_json: Json = False) -> int:
    """Try settings, broker, topics, registry, schemas, model and device, and say how to mend what fails."""
    StopFlag(interrupt=True)
    from worker.commands.check import check as try_all  # noqa: PLC0415

    return try_all(config, as_json=as_json)


@grouping.command(
    app,
    "bench",
    section=Section.OPERATE,
    examples=["xnli-worker bench", "xnli-worker bench --shape base --no-pipeline"],
)
def bench(
    config: ConfigFile = None,
    shape: Annotated[
        Literal["small", "base", "large"] | None,
        typer.Option(help="random weights of this shape; without this and --config: the demo's checkpoint"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N, in place of model.device")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="auto, fp32, bf16, fp16, int8 or int4, in place of model.precision")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads (default: torch's choice)")
    ] = None,
    messages: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="messages a run (default: a second's worth)")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="timed runs of each")] = 5,
    no_pipeline: Annotated[
        bool, typer.Option("--no-pipeline", help="leave transformers' pipeline, the slowest, out")
    ] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="the whole worker too, over the embedded broker")] = False,
    as_json: Json = False,
) -> int:
    """How fast the model runs here, next to transformers' pipeline."""
    if config is not None and shape is not None:
        raise SettingsError("--shape and --config are two models: keep one")
    StopFlag(interrupt=True)
    from worker.commands.bench import bench as measure  # noqa: PLC0415

    measure(
        config,
        shape=shape,
        device=device,
        precision=precision,
        threads=threads,
        messages=messages,
        runs=runs,
        peer=not no_pipeline,
        kafka=kafka,
        as_json=as_json,
    )
    return 0
