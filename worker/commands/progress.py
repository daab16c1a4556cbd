"""A progress bar on a terminal, for commands that send."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(verb: str, unit: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr if that is a terminal, else nothing.

    Args:
        verb: What goes on, "sending".
        unit: What is counted behind the bar, "lines".
        total: Where the bar ends; None if nobody knows.

    Yields:
        A function that takes how far the bar moves on, and the count so far.
    """
    if not sys.stderr.isatty():
        yield lambda _moved, _count: None
        return
    columns = (
        TextColumn(verb),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]:,} " + unit),
        TimeRemainingColumn(),
    )
    # Rich takes stderr over while the bar is shown, so that complaints appear above it.
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, count=0)
        yield lambda moved, count: progress.update(task, advance=moved, count=count)
