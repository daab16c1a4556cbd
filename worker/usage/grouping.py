"""How commands are declared, and how their help is laid out: in groups, with examples, in 80 columns."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

import typer
from typer.core import TyperGroup

from worker import streams

WRONG_USAGE: Final = 2

_Command = TypeVar("_Command", bound=Callable[..., int])


class Section(StrEnum):
    """The parts of the help, in its order."""

    FIRST = "First steps"
    WORK = "The worker"
    MESSAGES = "Requests and results"
    QUALITY = "Quality"
    OPERATE = "Settings and surroundings"


class Group(TyperGroup):
    """A command that has commands, and lists them by section, each in the order of its declaration."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and ``--help``."""
        return [_without_pydantic(option) for option in super().get_params(ctx)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        found: list[tuple[str, Any]] = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        widest = max(len(name) for name, _ in found)
        for section in (*Section, None):
            rows = [
                (name.ljust(widest), command.help.partition("\n\n")[0])
                for name, command in found
                if command.rich_help_panel == section
            ]
            if rows:
                with formatter.section(section or "Commands"):
                    formatter.write_dl(rows)


def _without_pydantic(option: Any) -> Any:
    """Give a flag of Typer's own the default that it lacks: only pydantic could tell what None is as a bool.

    To import that takes longer than everything else that a help needs.
    """
    if getattr(option, "is_flag", False) and option.default is None:
        option.default = False
    return option


def group(
    text: str,
    *,
    name: str | None = None,
    after: str | None = None,
    is_program: bool = False,
) -> typer.Typer:
    """A group of commands. Typed alone it shows its help and exits with 2.

    Args:
        text: What it is for.
        name: Its name; None for the program itself, and for a group whose commands go into another.
        after: What stands at the end of its help, its line breaks kept.
        is_program: It is the whole: completion is installed by its options.
    """
    made = typer.Typer(
        name=name,
        cls=Group,
        help=text,
        epilog=None if after is None else f"\b\n{after}",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=is_program,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    if name is not None:
        made.callback(invoke_without_command=True)(_show_help)
    return made


def _show_help(context: typer.Context) -> None:
    show_help_if_alone(context)


def show_help_if_alone(context: typer.Context) -> None:
    """List the commands where none was named."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        if streams.is_lost(sys.stderr):  # a failure without a word helps nobody
            typer.echo(context.get_help())
        raise typer.Exit(WRONG_USAGE)


def command(
    parent: typer.Typer, name: str, *, section: Section | None = None, examples: Sequence[str] = ()
) -> Callable[[_Command], _Command]:
    """Declare a command whose function returns the exit code.

    Typer gets a function that only binds the arguments: the command runs after Typer is done, so that what it raises
    is ours alone to catch. (Typer would turn Ctrl-C into an exit code of its own.)

    Args:
        parent: The group it belongs to.
        name: Its name.
        section: The section of the help that lists it.
        examples: Command lines for the end of its help.
    """

    def declare(function: _Command) -> _Command:
        @functools.wraps(function)
        def bind(**arguments: Any) -> Callable[[], int]:
            return functools.partial(function, **arguments)

        lines = "".join(f"\n  $ {example}" for example in examples)
        parent.command(
            name,
            rich_help_panel=section,
            epilog=f"\b\nExamples:{lines}" if lines else None,
            context_settings={"help_option_names": ["--help", "-h"]},
        )(bind)
        return function

    return declare
