"""A stranger's text as a terminal may see it: without the means to steer it, or to reorder what stands beside it.

Control characters move the cursor, C1 ones (U+0080 to U+009F) as well as those behind an ESC; bidirectional overrides
show a text in another order than it has; U+2028, U+2029 and U+0085 end a line for some readers and not for others.
Joiners (U+200C, U+200D) stay: Persian, Hindi and emoji are written with them. Imports nothing of ours.
"""

from __future__ import annotations

import re
from typing import Final

# Controls; marks, embeddings, overrides and isolates of direction; line and paragraph separators; what no glyph has and
# a label could be hidden in (tags, fillers of annotations, the byte order mark); half surrogate pairs.
_STEERING: Final = (
    r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff\ud800-\udfff"
)
_IN_LINE: Final = re.compile(rf"[\x00-\x1f{_STEERING}]")
_IN_JSON: Final = re.compile(f"[{_STEERING}]")
_IN_LINES: Final = re.compile(rf"[\x00-\x08\x0b-\x1f{_STEERING}]")


def harmless(text: str) -> str:
    """A text in one line: blanks of all kinds as spaces, what would steer a terminal as its number (U+009B as x9b)."""
    return _IN_LINE.sub(_shown, text)


def harmless_lines(text: str) -> str:
    """As `harmless`, but lines and tabs stay as they are: for tracebacks."""
    return _IN_LINES.sub(_shown, text)


def escaped(json_text: str) -> str:
    """JSON with the same meaning, of which one line is one line for every reader, and harmless on a terminal."""
    return _IN_JSON.sub(_json_escape, json_text)


def _shown(found: re.Match[str]) -> str:
    character = found[0]
    return " " if character.isspace() else character.encode("unicode_escape").decode()


def _json_escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
