"""Hypothesis templates: which are accepted, and how a label goes in. One rule for settings and requests.

A template comes from outside, so it never meets ``str.format``: ``{0.__class__}`` would reach into the worker. It is
split at its bare ``{}``, and a label stands between the two parts as it is, whatever braces it holds. Any other brace
is refused, doubled ones too: nothing here would halve them, and the model would read both.
"""

from __future__ import annotations

from typing import Final

TEMPLATE_RULE: Final = "write exactly one {} where the label goes, and no other brace"


def is_template(text: str) -> bool:
    """Whether the text has exactly one ``{}`` and no other brace."""
    return "{}" in text and text.count("{") == 1 and text.count("}") == 1


def split(template: str) -> tuple[str, str]:
    """What stands before and after the label, of a text that `is_template`."""
    before, _, after = template.partition("{}")
    return before, after
