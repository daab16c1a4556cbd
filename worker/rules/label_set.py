"""A label set as a request is completed from it, and which of several languages' wordings a request gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from worker.messages import LabelSetVersion, LongText, Taxonomy

# The key of the wording for all other languages.
OTHERWISE: Final = "default"
# Language tags are at most this long in practice (RFC 5646, section 4.4.1): what is longer names no language.
_LONGEST_CODE: Final = 35


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A label set in one language: all that a request is completed from, ready to be used.

    ``labels`` are all nodes of its tree, parents before children, and ``hypotheses`` their finished sentences. The
    length of the longest text among labels and wordings is ``longest_chars``. ``thresholds`` has one for each label,
    its own or the set's, where any label has its own; it is empty otherwise. ``calibration`` is the name of one that
    the operator offers. All else is as the set says.
    """

    version: LabelSetVersion
    labels: tuple[str, ...]
    hypotheses: tuple[str, ...]
    longest_chars: int
    taxonomy: Taxonomy | None = None
    thresholds: tuple[float | None, ...] = ()
    threshold: float | None = None
    top_k: int | None = None
    multi_label: bool = False
    abstain_on_neutral: float | None = None
    evidence: int = 0
    long_text: LongText | None = None
    calibration: str | None = None


class LabelSets(Protocol):
    """Where label sets are looked up."""

    def find(self, name: str, language: str | None) -> LabelSet | None:
        """The set of this name, worded for a language; None if there is none."""


def normal_code(language: str | None) -> str | None:
    """A language code as they are compared: in lower case, with hyphens. None for what is too long for one."""
    if language is None or len(language) > _LONGEST_CODE:
        return None
    return language.lower().replace("_", "-")


def worded(wording: str | Mapping[str, str] | None, language: str | None) -> str | None:
    """The wording for a language: that of its code, else of the code's first part (de of de-AT), else the default.

    Args:
        wording: One for all languages, or by `normal_code`, with `OTHERWISE` for the others.
        language: A `normal_code`, or None where it is not known.
    """
    if wording is None or isinstance(wording, str):
        return wording
    if language is not None:
        found = wording.get(language)
        if found is None:
            found = wording.get(language.partition("-")[0])
        if found is not None:
            return found
    return wording.get(OTHERWISE)
