"""Alignment on real pseudo-terminals: what the cursor is told, not what we believe of letters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.terminal import Terminal
from worker import screen

ROOT = Path(__file__).parents[2]
TEXTS = ["plain", "नमस्ते दुनिया", "你好世界", "สวัสดี", "مرحبا بالعالم", "👩‍👩‍👧 family", "e\u0301"]


@given(st.text(max_size=60), st.integers(1, 40))
def test_what_is_cut_fits_and_what_fits_is_not_cut(text: str, columns: int) -> None:
    shown = screen.cut(text, columns)
    assert screen.width(shown) <= columns or shown == text
    assert shown == text or shown.endswith("…")
    assert (shown == text) == (screen.width(text) <= columns)


@given(st.text(max_size=200), st.integers(2, 40))
def test_what_is_wrapped_is_whole(text: str, columns: int) -> None:
    lines = screen.wrapped(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(screen.width(line) <= columns for line in lines)


def test_a_number_keeps_its_unit() -> None:
    assert screen.wrapped("loaded in 56.6 s on cpu", 15) == ["loaded in", "56.6 s on cpu"]


@pytest.mark.parametrize(("text", "columns"), [("नमस्ते", 4), ("你好", 4), ("สวัสดี", 4), ("مرحبا", 5), ("a", 1)])
def test_widths(text: str, columns: int) -> None:
    assert columns <= screen.width(text) <= columns + 1  # some terminals give vowel signs a column


def test_right_to_left_text_is_set_apart() -> None:
    assert screen.isolated("مرحبا") == "\u2068مرحبا\u2069\u200e"
    assert screen.isolated("hello") == "hello"


def test_plurals() -> None:
    assert screen.plural(1, "message") == "1 message"
    assert screen.plural(0, "batch", "batches") == "0 batches"


def test_columns_begin_where_the_cursor_is_put_however_wide_the_letters_are() -> None:
    program = f"""
from worker.screen import Cell, Screen, BOLD
out = Screen()
for text in {TEXTS!r}:
    out.row([text, Cell("second", BOLD), "x" * 200], [20, 10])
"""
    terminal = Terminal([sys.executable, "-c", program], os.environ | {"PYTHONPATH": str(ROOT)}, ROOT)
    assert terminal.end() == 0
    lines = terminal.raw.decode().splitlines()
    assert len(lines) == len(TEXTS)
    for line in lines:
        assert re.findall(r"\x1b\[(\d+)G", line) == ["23", "35"]
        last = line.rpartition("G")[2]
        assert last == "x" * 45 + "…"  # up to the edge of 80 columns, and not beyond
        assert "\x1b[1msecond\x1b[0m" in line


def test_a_pipe_gets_spaces() -> None:
    program = "from worker.screen import Screen; Screen().row(['你好', 'b'], [6])"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    assert shown.stdout.decode() == "你好    b\n"


@pytest.mark.parametrize(
    ("labels", "score", "text"),
    [
        (
            [{"label": "late", "score": 0.83, "calibrated": None}, {"label": "lost", "score": 0.1}],
            0.83,
            "late, lost 0.10",
        ),
        ([{"label": "late", "score": 0.83, "calibrated": 0.97}], 0.97, "late (raw 0.83)"),
        (
            [{"label": "late", "score": 0.83}, {"label": "lost", "score": 0.1, "calibrated": 0.02}],
            0.83,
            "late, lost 0.02",
        ),
    ],
)
def test_an_answer_names_the_calibrated_score_where_there_is_one(
    labels: list[dict[str, Any]], score: float, text: str
) -> None:
    found = screen.answer({"labels": labels, "multi_label": False})
    assert (found.score, found.text) == (score, text)
