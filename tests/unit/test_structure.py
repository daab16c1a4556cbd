"""Sizes and names in worker/: a file can be read at one sitting, and a file's name belongs to that file alone.

Where something must be larger, a comment says why. ``# size: REASON`` stands right above a function or class
(or its decorators), and for a module right under its docstring.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"
FILES = sorted(path for path in WORKER.rglob("*.py"))

FUNCTION_LINES = 60
CLASS_LINES = 200
MODULE_LINES = 400
REASON = re.compile(r"\s*# size: \w")


def _has_reason(comments: Sequence[str]) -> bool:
    return any(REASON.match(line) for line in comments)


def _comments_above(lines: Sequence[str], number: int) -> list[str]:
    """The unbroken run of comment lines above line ``number`` (which counts from 1)."""
    first = number - 1
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return list(lines[first : number - 1])


def too_large(source: str) -> Iterator[str]:
    """What exceeds its limit and gives no reason, as ``NAME is N lines long, of at most M``."""
    lines = source.splitlines()
    tree = ast.parse(source)
    if len(lines) > MODULE_LINES:
        under_docstring = lines[tree.body[0].end_lineno or 0 : tree.body[1].lineno - 1]
        if not _has_reason(under_docstring):
            yield f"the module is {len(lines)} lines long, of at most {MODULE_LINES}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
        length = (node.end_lineno or 0) - node.lineno + 1
        begin = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if length > limit and not _has_reason(_comments_above(lines, begin)):
            yield f"{node.name} is {length} lines long, of at most {limit}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(WORKER).as_posix())
def test_functions_classes_and_modules_are_small(path: Path) -> None:
    found = list(too_large(path.read_text(encoding="utf-8")))
    assert not found, "; ".join(found)


def test_no_two_modules_share_a_name() -> None:
    places = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(path.relative_to(WORKER).as_posix())
    assert [found for found in places.values() if len(found) > 1] == []


@pytest.mark.parametrize("reason", ["", "# size: one table, which is read from top to bottom\n"])
def test_a_reason_excuses_what_it_stands_above(reason: str) -> None:
    body = "    pass\n"
    function = f"{reason}@decorated\ndef long():\n{body * FUNCTION_LINES}"
    method = f"class Short:\n    {reason.strip() or '# -'}\n    def long(self):\n{('    ' + body) * FUNCTION_LINES}"
    kind = f"{reason}class Long:\n{body * CLASS_LINES}"
    module = f'"""What it is."""\n\n{reason}\nimport os\n' + "os = 1\n" * MODULE_LINES
    for source in (function, method, kind, module):
        assert len(list(too_large(source))) == (0 if reason else 1), source[:60]
