"""Commands, exit codes, signals.

Exit codes: 0 done or drained; 1 failed while running; 2 wrong usage or settings. Signals set a flag and nothing else;
a second one ends the process at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from worker import __version__
from worker.errors import FatalError, SettingsError, TransientError, WorkerError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2


class StopFlag:
    """True once SIGTERM or SIGINT has arrived. The second signal exits at once with code 1, draining nothing."""

    def __init__(self) -> None:
        self._raised = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> bool:
        """True if the process was asked to stop."""
        return self._raised

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._raised:
            os._exit(FAILED)
        self._raised = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Argparse exits with 2 by itself on wrong usage."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except SettingsError as error:
        return _complain(str(error), WRONG_USAGE)
    except (FatalError, TransientError, WorkerError) as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        # The reader of our output went away (`| head`). Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _complain(message: str, code: int) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"xnli-worker: {line}\n")
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

    check = _command(commands, "check", _check, "try settings, broker, topics, registry, schemas, model and device")
    _add_config(check)
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="TOML settings; XNLI_* variables override"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


# Commands import what they need when they run: `--help` and a wrong setting need not wait for torch.


def _run(arguments: argparse.Namespace) -> int:
    from worker import settings  # noqa: PLC0415
    from worker.telemetry import log  # noqa: PLC0415

    loaded = settings.load(arguments.config)
    log.configure(loaded.log.level, loaded.log.format, sys.stderr)
    stop = StopFlag()
    from worker.pipeline import Pipeline  # noqa: PLC0415

    return DONE if Pipeline(loaded).run(stop) else FAILED


def _demo(arguments: argparse.Namespace) -> int:
    from worker.demo.play import play  # noqa: PLC0415

    return DONE if play(arguments.count, as_json=arguments.json, stop_requested=StopFlag()) else FAILED


def _send(arguments: argparse.Namespace) -> int:
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


def _check(arguments: argparse.Namespace) -> int:
    from worker.commands.check import check  # noqa: PLC0415

    return check(arguments.config)


if __name__ == "__main__":
    sys.exit(main())
