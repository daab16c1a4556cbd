"""The command line: from what was typed to an exit code.

Exit codes: 0 done or drained; 1 failed while running; 2 wrong usage or settings. What may be typed is in
`worker.usage`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the current folder first, and nothing of the user's is ours to run.
    del sys.path[0]

import errno
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import typer

from worker import __version__, process, redaction, streams
from worker.errors import FatalError, SettingsError, TransientError, WorkerError
from worker.usage import (
    adapting,
    configuration,
    dead_letter_commands,
    grouping,
    label_set_commands,
    learning,
    schema_commands,
    topic_commands,
    traffic,
    working,
)
from worker.usage.grouping import Section

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
_NAME: Final = "xnli-worker"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    From here on nothing reaches stderr but without secrets: the interpreter's own traceback neither.
    """
    streams.stand_in()
    sys.stderr = redaction.guarded(sys.stderr)
    try:
        return process.end(_printed(_code_of(sys.argv[1:] if argv is None else argv)))
    except SystemExit:  # completion's, which has printed what it has to
        raise
    except BaseException:
        process.end(_printed(FAILED))  # a bug: with a forward under way it is told here, else by the interpreter
        raise


def _code_of(argv: Sequence[str]) -> int:
    """The exit code of a command line, whatever of ours its command raises."""
    try:
        found: int | Callable[[], int] = program()(list(argv), prog_name=_NAME, standalone_mode=False)
        return found() if callable(found) else found
    except typer.TyperException as error:  # what was typed is no command, or one of its options will not do
        where = getattr(error, "ctx", None)
        said = error.format_message().replace("Value error, ", "")  # pydantic's words
        return _complain(f"{said}\ntry: {where.command_path if where else _NAME} --help", WRONG_USAGE)
    except SettingsError as error:
        return _complain(str(error), WRONG_USAGE)
    except (FatalError, TransientError, WorkerError) as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return FAILED
    except streams.OutputLost as lost:
        return _unprinted(lost, DONE)
    except OSError as error:  # a folder that is read-only, no space left for temporary files
        return _complain(str(error), FAILED)


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


def program() -> typer.Typer:
    """The whole command line. Called, it returns what is to be done: a function of no argument, or an exit code."""
    root = grouping.group(
        "Zero-shot classification, entailment and embeddings between Kafka topics.",
        after="Exit codes: 0 done or drained, 1 failed while running,\n2 wrong usage or settings.",
        is_program=True,
    )
    root.callback(invoke_without_command=True)(_root)
    for part in (working.app, traffic.app):
        root.add_typer(part)
    root.add_typer(dead_letter_commands.app, rich_help_panel=Section.MESSAGES)
    root.add_typer(label_set_commands.app, rich_help_panel=Section.MESSAGES)
    root.add_typer(learning.app)
    root.add_typer(adapting.app)
    root.add_typer(topic_commands.app, rich_help_panel=Section.OPERATE)
    root.add_typer(schema_commands.app, rich_help_panel=Section.OPERATE)
    root.add_typer(configuration.app, rich_help_panel=Section.OPERATE)
    return root


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"{_NAME} {__version__}")
        raise typer.Exit(DONE)
    grouping.show_help_if_alone(context)


if __name__ == "__main__":
    sys.exit(main())
