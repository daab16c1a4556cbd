from __future__ import annotations

import pytest
import regex

from worker.rules.blank import INVISIBLE, is_blank


@pytest.mark.parametrize(
    "text",
    [
        *"\u200b\ufeff\u00ad\ufe0f\u2060\u3164\u115f\uffa0\u2800\u00a0\u2003\u202e\u0000\x1f\x85\ufff9\U000e0041",
        "",
        " \u200b\u3164\t",
    ],
)
def test_nothing_can_be_seen(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize(
    "text", ["a", "\u200ba", "\u3164.", "\u0600", "\u0301", "日", "🙂", "\ufe0f1", "\u28ff", "\U00020000"]
)
def test_something_can_be_seen(text: str) -> None:
    assert not is_blank(text)


def test_no_character_of_any_plane_is_missing() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert set(regex.findall(r"[\p{White_Space}\p{Default_Ignorable_Code_Point}]", everything)) <= INVISIBLE
    assert {character for character in everything if character.isspace()} <= INVISIBLE
