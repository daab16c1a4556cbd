"""Which language a text is in: the extra ``language``, offline, by lingua.

Lingua's models of n-grams come with the package, so nothing is downloaded. They are loaded when the first text asks for
them: 50 MiB and half a second, for trigrams alone. With all its n-grams lingua takes 850 MiB and ten seconds, and eight
times as long for a text of one sentence. Of 1,710 such sentences (37 characters, 15 languages) it then tells 99 % right
in place of 95 %; of three sentences together both tell all.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from worker.errors import SettingsError

# The beginning of a text tells as much as the whole, and costs as little as a short one.
READ_CHARS: Final = 200
# Among fewer it is more often right: with all 75 of lingua's a short Hindi text is Marathi, and a Swahili one Shona.
LANGUAGES: Final = (
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr"),
    *("hu", "hy", "id", "it", "ja", "ka", "ko", "lt", "lv", "mk", "ms", "nb", "nl", "pa", "pl", "pt", "ro", "ru"),
    *("sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh"),
)
# By so much the likeliest language has to be ahead of the second: else none is told. It takes a fifth of the errors.
_AHEAD: Final = 0.1


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
    from lingua import IsoCode639_1, LanguageDetectorBuilder  # noqa: PLC0415 (an extra)

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    among = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
    built = among.with_low_accuracy_mode().with_minimum_relative_distance(_AHEAD).build()

    def detect(text: str) -> str | None:
        found = built.detect_language_of(text)
        return None if found is None else str(found.iso_code_639_1.name).lower()

    return detect
