from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from worker import terminal
from worker.commands.json_lines import json_line

# What steers a terminal, reorders text, or ends a line for some readers: at least one of each kind.
HOSTILE = "\x1b[2J \x07 \x7f \x85 \x9b2J \x9d0;title\x9c \u061c \u200f \u2028 \u2029 \u202e \u2066 \ufeff \U000e0041"


def test_a_strangers_text_is_one_line_without_the_means_to_steer() -> None:
    shown = terminal.harmless(f"a\r\n\tb {HOSTILE}")
    assert shown.startswith("a   b \\x1b[2J \\x07 \\x7f   \\x9b2J \\x9d0;title\\x9c ")
    assert shown.endswith("\\u061c \\u200f     \\u202e \\u2066 \\ufeff \\U000e0041")
    assert shown.isprintable()
    assert terminal.harmless_lines(f"a\n\tb {HOSTILE}").split("\n") == ["a", f"\tb {terminal.harmless(HOSTILE)}"]


def test_scripts_are_left_as_they_are() -> None:
    text = "Доставка 東京 می‌خواهم क्‍ष 👩‍👩‍👧 عربي"
    assert terminal.harmless(text) == text


@given(st.text(max_size=50))
def test_json_is_exact_and_one_line_for_every_reader(text: str) -> None:
    line = json_line({"text": text + HOSTILE}).decode()
    assert line.splitlines() == [line[:-1]]
    assert json.loads(line) == {"text": text + HOSTILE}


def test_half_a_surrogate_pair_can_be_written() -> None:
    assert json.loads(json_line({"text": "\udc80"})) == {"text": "\udc80"}
