"""What is blank: nothing of it can be seen. A model answers such a text all the same, and its answer means nothing.

White space, characters that are shown only in fonts' test pages (Unicode's ``Default_Ignorable_Code_Point``: zero-width
space, soft hyphen, byte order mark, variation selectors, Hangul fillers), controls, marks of format but for those that
are drawn (Arabic's number sign), and the Braille pattern without dots.
"""

from __future__ import annotations

from typing import Final

import regex

_PATTERN: Final = (
    r"(?V1)[\p{White_Space}\p{Default_Ignorable_Code_Point}\p{Cc}\u2800[\p{Cf}--\p{Prepended_Concatenation_Mark}]]"
)
# Planes 2 and 3 hold ideographs alone, and what lies behind plane 14 is for private use: to search them takes longer.
_PLANES: Final = (0, 1, 14)

# Every character that cannot be seen, about 4,300.
INVISIBLE: Final = frozenset(
    regex.findall(_PATTERN, "".join(chr(code) for plane in _PLANES for code in range(plane << 16, (plane + 1) << 16)))
)


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen. Where its first character can, look that up in `INVISIBLE` instead."""
    return INVISIBLE.issuperset(text)
