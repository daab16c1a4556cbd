from __future__ import annotations

import threading

import pytest

from worker import language_detection
from worker.errors import SettingsError
from worker.language_detection import LANGUAGES, READ_CHARS, detector

TEXTS = {
    "de": "Mein Paket ist nicht angekommen, wann bekomme ich mein Geld zurück?",
    "en": "My parcel has not arrived, when do I get my money back?",
    "fr": "Mon colis n'est pas arrivé, quand serai-je remboursé ?",
    "ru": "За кого вы голосуете в 2020 году?",
    "ar": "لم يصلني رد على رسالتي منذ أسبوع.",
    "ja": "荷物がまだ届きません。",
    "zh": "我的包裹还没到，什么时候退款？",
    "hi": "मेरा पार्सल अभी तक नहीं आया है",
    "sw": "Kifurushi changu hakijafika, nitarudishiwa lini pesa zangu?",
}


def test_languages_are_told_by_their_codes_and_what_tells_nothing_is_none() -> None:
    detect = detector()
    assert detect is not None
    assert {code: detect(text) for code, text in TEXTS.items()} == {code: code for code in TEXTS}
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 51
    assert [detect(text) for text in ("12345 !!", "🐍")] == [None, None]
    assert detect(TEXTS["de"].ljust(READ_CHARS) + TEXTS["ru"] * 100) == "de", "the beginning tells"


def test_any_number_of_threads_may_ask() -> None:
    detect = detector()
    assert detect is not None
    found: list[tuple[str, str | None]] = []

    def ask() -> None:
        found.extend((code, detect(text)) for code, text in TEXTS.items())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(TEXTS)
    assert all(code == told for code, told in found)


def test_without_the_extra_nothing_is_detected_and_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_detection, "find_spec", lambda _: None)
    assert detector() is None
    with pytest.raises(SettingsError, match=r'model\.default_language = "auto".*xnli-worker\[language\]'):
        detector(is_needed=True)
