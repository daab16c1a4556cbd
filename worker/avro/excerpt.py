"""Values and texts of strangers as error messages show them: printable and short. Pure."""

from __future__ import annotations

from typing import Final

_MAX_SHOWN: Final = 100


def clip(text: str) -> str:
    """A text of ours or of a library, cut to about 300 characters."""
    return text if len(text) <= _MAX_SHOWN * 3 else f"{text[: _MAX_SHOWN * 3]}..."


def excerpt(value: object) -> str:
    """A value of a message: bytes in hex, everything else as Python writes it, cut to about 100 characters."""
    if isinstance(value, bytes):
        shown = value[: _MAX_SHOWN // 2].hex(" ", 1)
        return shown if len(value) <= _MAX_SHOWN // 2 else f"{shown} ..."
    shown = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
