"""Commands, exit codes, signals.

Exit codes: 0 done or drained; 1 failed while running; 2 wrong usage or settings.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the current folder first, and nothing of the user's is ours to run.
    del sys.path[0]

import argparse
import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker import __version__, process, redaction, streams
from worker.errors import FatalError, SettingsError, TransientError, WorkerError
from worker.process import StopFlag

if TYPE_CHECKING:
    from worker.rules.replay import Selection

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2

_MAX_DIGITS: Final = 18  # of a number on the command line; Python refuses to read one of 5,000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Argparse exits with 2 by itself on wrong usage.

    From here on nothing reaches stderr but without secrets: the interpreter's own traceback neither.
    """
    streams.stand_in()
    sys.stderr = redaction.guarded(sys.stderr)
    try:
        arguments = _parser().parse_args(argv)
        return process.end(_printed(_code_of(arguments.command, arguments)))
    except SystemExit as ended:  # argparse's, which has written help or usage
        ended.code = _printed(ended.code if isinstance(ended.code, int) else FAILED)
        if ended.code and streams.is_lost(sys.stderr):
            _complain("wrong usage; --help says what would be right", WRONG_USAGE)
        raise
    except BaseException:
        process.end(_printed(FAILED))  # a bug: with a forward under way it is told here, else by the interpreter
        raise


def _code_of(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """The exit code of a command, whatever of ours it raises."""
    try:
        return command(arguments)
    except SettingsError as error:
        return _complain(str(error), WRONG_USAGE)
    except (FatalError, TransientError, WorkerError) as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)
    except KeyboardInterrupt:
        return FAILED
    except streams.OutputLost as lost:
        return _unprinted(lost, DONE)
    except OSError as error:  # a folder that is read-only, no space left for temporary files
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def _printed(code: int) -> int:
    """The exit code once what the command has written is out."""
    try:
        sys.stdout.flush()
    except streams.OutputLost as lost:
        return _unprinted(lost, code)
    return code


def _unprinted(lost: streams.OutputLost, code: int) -> int:
    """The exit code of a command whose work is what it prints. A reader who went away (`| head`) had enough."""
    if lost.errno == errno.EPIPE:
        return code
    return _complain(f"stdout: {lost.strerror}; what should stand there is not whole", max(code, FAILED))


def _complain(message: str, code: int) -> int:
    for line in message.split("\n"):
        streams.complain(line)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xnli-worker",
        description="Zero-shot classification, entailment and embeddings between Kafka topics.",
        epilog="exit codes: 0 done or drained, 1 failed while running, 2 wrong usage or settings",
    )
    parser.add_argument("--version", action="version", version=f"xnli-worker {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "consume requests, produce results, until SIGTERM or SIGINT")
    _add_config(run)

    demo = _command(commands, "demo", _demo, "broker, model and sample messages in one process; nothing to install")
    demo.add_argument(
        "--count", type=_positive, default=None, metavar="N", help="messages to send (default: all samples)"
    )
    demo.add_argument("--json", action="store_true", help="results as JSON lines instead of a table")

    send = _command(commands, "send", _send, "JSON lines to Avro requests on the input topic")
    send.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSON lines, one request each; - is stdin")
    _add_config(send)

    tail = _command(commands, "tail", _tail, "results, or dead letters, as JSON lines")
    tail.add_argument("--dead-letters", action="store_true", help="follow the dead-letter topic instead")
    tail.add_argument("--count", type=_positive, default=None, metavar="N", help="stop after N records")
    tail.add_argument("--from-beginning", action="store_true", help="start at the oldest record instead of the newest")
    _add_config(tail)

    _add_dead_letters(_group(commands, "dead-letters", "list, show or replay what could not be answered"))

    check = _command(commands, "check", _check, "try settings, broker, topics, registry, schemas, model and device")
    _add_config(check)

    _add_bench(_command(commands, "bench", _bench, "how fast the model runs here, next to transformers' pipeline"))
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _group(commands: Any, name: str, text: str) -> Any:
    """A command that only has commands."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _add_dead_letters(commands: Any) -> None:
    listing = _command(commands, "list", _list_dead_letters, "a table on a terminal, JSON lines in a pipe")
    _add_selection(listing)
    listing.add_argument("--limit", type=_positive, default=None, metavar="N", help="stop after N dead letters")

    show = _command(commands, "show", _show_dead_letter, "one dead letter whole: headers, key and payload")
    show.add_argument("position", metavar="PARTITION:OFFSET", help="where it lies in the dead-letter topic")
    _add_config(show)

    replay = _command(commands, "replay", _replay, "send dead letters as requests, each once; resumes if broken off")
    _add_selection(replay)
    replay.add_argument("--to", metavar="TOPIC", help="destination (default: the topic each request came from)")
    replay.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    replay.add_argument("--limit", type=_positive, default=None, metavar="N", help="send at most N in this run")
    replay.add_argument("--rate", type=_positive, default=None, metavar="N", help="send at most N a second")
    replay.add_argument(
        "--max-replays", type=_positive, default=3, metavar="N", help="refuse those replayed N times (default: 3)"
    )
    replay.add_argument(
        "--campaign",
        metavar="NAME",
        help="keeps the progress under this name (default: one derived from filters and --to; other filters are "
        "another campaign, and may send the same again)",
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    _add_config(model)
    model.add_argument(
        "--shape",
        choices=["small", "base", "large"],
        help="random weights of this shape in place of the configured model (without either: the demo's checkpoint)",
    )
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N, in place of model.device")
    parser.add_argument("--precision", metavar="P", help="auto, fp32, bf16, fp16 or int8, in place of model.precision")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads, in place of model.threads")
    parser.add_argument("--messages", type=_positive, metavar="N", help="messages a run (default: a second's worth)")
    parser.add_argument("--runs", type=_positive, default=5, metavar="N", help="timed runs of each (default: 5)")
    parser.add_argument("--no-pipeline", action="store_true", help="leave transformers' pipeline, the slowest, out")
    parser.add_argument("--kafka", action="store_true", help="the whole worker too, over the embedded broker")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table, as in a pipe")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", action="append", default=[], metavar="R", help="this reason; may be given again")
    parser.add_argument("--since", metavar="TIME", help="those of this time or later: ISO 8601, or an age (list)")
    parser.add_argument("--until", metavar="TIME", help="those before this time")
    parser.add_argument("--topic", metavar="TOPIC", help="requests that first came from this topic")
    parser.add_argument("--partition", type=_natural, metavar="N", help="requests that first came from this partition")
    parser.add_argument("--key", metavar="KEY", help="requests with this key")
    parser.add_argument("--replays", type=_natural, metavar="N", help="requests replayed N times already")
    _add_config(parser)


def _add_config(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="TOML settings; XNLI_* variables override"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(text)


# Commands import what they need when they run: `--help` and a wrong setting need not wait for torch.


def _run(arguments: argparse.Namespace) -> int:
    stop = StopFlag()  # first: as process 1 of a container, one that handles no signal yet does not even end by one
    import structlog  # noqa: PLC0415

    from worker import settings  # noqa: PLC0415
    from worker.telemetry import log  # noqa: PLC0415

    loaded = settings.load(arguments.config)
    log.configure(loaded.log.level, loaded.log.format, sys.stderr)
    structlog.get_logger("worker").info("starting", version=__version__, model=loaded.model.name)
    from worker.app import App  # noqa: PLC0415

    return DONE if App(loaded).run(stop) else FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from worker.demo.play import play  # noqa: PLC0415

    return DONE if play(arguments.count, as_json=arguments.json, stop_requested=StopFlag()) else FAILED


def _send(arguments: argparse.Namespace) -> int:
    StopFlag(interrupt=True)
    from worker.commands.send import send  # noqa: PLC0415

    return DONE if send(arguments.file, arguments.config) else FAILED


def _tail(arguments: argparse.Namespace) -> int:
    from worker.commands.tail import tail  # noqa: PLC0415

    return (
        DONE
        if tail(
            arguments.config,
            dead_letters=arguments.dead_letters,
            count=arguments.count,
            from_beginning=arguments.from_beginning,
            stop_requested=StopFlag(),
        )
        else FAILED
    )


def _selection(arguments: argparse.Namespace, *, ages: bool) -> Selection:
    from worker.commands.dead_letters import select  # noqa: PLC0415

    return select(
        reasons=arguments.reason,
        since=arguments.since,
        until=arguments.until,
        topic=arguments.topic,
        partition=arguments.partition,
        key=arguments.key,
        replays=arguments.replays,
        ages=ages,
    )


def _list_dead_letters(arguments: argparse.Namespace) -> int:
    from worker.commands.dead_letters import list_dead_letters  # noqa: PLC0415

    selection = _selection(arguments, ages=True)
    list_dead_letters(arguments.config, selection, limit=arguments.limit, stop_requested=StopFlag())
    return DONE


def _show_dead_letter(arguments: argparse.Namespace) -> int:
    StopFlag(interrupt=True)
    from worker.commands.dead_letters import show  # noqa: PLC0415

    show(arguments.config, arguments.position)
    return DONE


def _replay(arguments: argparse.Namespace) -> int:
    from worker.commands.dead_letters_replay import replay  # noqa: PLC0415

    done = replay(
        arguments.config,
        _selection(arguments, ages=False),
        to=arguments.to,
        max_replays=arguments.max_replays,
        campaign=arguments.campaign,
        limit=arguments.limit,
        rate=arguments.rate,
        dry_run=arguments.dry_run,
        stop_requested=StopFlag(),
    )
    return DONE if done else FAILED


def _bench(arguments: argparse.Namespace) -> int:
    StopFlag(interrupt=True)
    from worker.commands.bench import bench  # noqa: PLC0415

    bench(
        arguments.config,
        shape=arguments.shape,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        messages=arguments.messages,
        runs=arguments.runs,
        peer=not arguments.no_pipeline,
        kafka=arguments.kafka,
        as_json=arguments.json,
    )
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    StopFlag(interrupt=True)
    from worker.commands.check import check  # noqa: PLC0415

    return check(arguments.config)


if __name__ == "__main__":
    sys.exit(main())
