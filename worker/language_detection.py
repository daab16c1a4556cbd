"""Which language a text is in: the extra ``language``, offline, by lingua.

Lingua's models of n-grams come with the package, so nothing is downloaded. The statistical models of all languages are
loaded when the first text asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from worker.errors import SettingsError

# The beginning of a text tells as much as the whole, and costs as little as a short one.
READ_CHARS: Final = 200


def detector(*, is_needed: bool = False) -> Callable[[str], str | None] | None:
    """What tells the language of a text, as its ISO 639-1 code, or None where it cannot. None without the extra.

    It may be called by any number of threads.

    Args:
        is_needed: Requests that name no language are to be detected (``model.default_language = "auto"``).

    Raises:
        SettingsError: it is needed, and the extra is not installed.
    """
    if find_spec("lingua") is not None:
        return _Detector()
    if is_needed:
        raise SettingsError(
            'model.default_language = "auto": nothing here detects languages; install the extra '
            '(pip install "xnli-worker[language]"), or set a language code'
        )
    return None


class _Detector:
    """Loads lingua at the first text: a worker whose requests name their language never does."""

    def __init__(self) -> None:
        self._detect: Callable[[str], str | None] | None = None

    def __call__(self, text: str) -> str | None:
        if self._detect is None:
            self._detect = _load()
        return self._detect(text[:READ_CHARS])


def _load() -> Callable[[str], str | None]:
    from lingua import LanguageDetectorBuilder  # noqa: PLC0415 (an extra, and half a second)

    built = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

    def detect(text: str) -> str | None:
        found = built.detect_language_of(text)
        return None if found is None else str(found.iso_code_639_1.name).lower()

    return detect
