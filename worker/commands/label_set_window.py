"""Whether each hypothesis of a label set leaves room for a text in a model's window."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from worker.commands.connection import say
from worker.errors import Rejection
from worker.label_sets.record import LabelSetRecord
from worker.messages import LabelSetVersion, LongText, Pooling, Request, Task
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.inference.tokens import Tokens


class Window:
    """The window of a model.

    Args:
        settings: How it is loaded, and what requests mean that do not say.
        model: A hub id, a directory, or "demo".

    Raises:
        SettingsError: it cannot be loaded.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        own = settings.model
        self._template, self._long_text = own.hypothesis_template, own.long_text
        self._tokens, max_length = _tokens(settings, model)
        self._text = "word " * max_length  # longer than the window

    def findings(self, record: LabelSetRecord) -> list[str]:
        """What is wrong with a set, a line each: a hypothesis that leaves no room, in any of its languages."""
        found: dict[str, None] = {}  # in their order, each once
        for language in (None, *sorted(record.languages)):
            made = record.complete(LabelSetVersion("", ""), language, self._template)
            for hypothesis in made.hypotheses:
                try:
                    self._tokens.encode(_request(self._text, hypothesis, made.long_text or self._long_text))
                except Rejection as refused:
                    found[str(refused)] = None
        return list(found)


def _tokens(settings: Settings, name: str) -> tuple[Tokens, int]:
    say(f"loading {name}, whose window the hypotheses have to fit into")
    from worker.inference import loading  # noqa: PLC0415 (imports torch)
    from worker.inference.tokens import Tokens  # noqa: PLC0415

    own = settings.model
    checkpoint = loading.load(
        name,
        revision=own.revision if name == own.name else None,
        device="cpu",
        precision="fp32",
        max_length=own.max_length if name == own.name else None,
        labels=own.labels if name == own.name else None,
        self_test="off",
    )
    # Which language a text is in makes no difference to its tokens.
    return Tokens(replace(checkpoint, languages={})), checkpoint.max_length


def _request(text: str, hypothesis: str, long_text: LongText) -> Request:
    return Request(
        id="window",
        task=Task.CLASSIFY,
        text=text,
        labels=("label",),
        hypotheses=(hypothesis,),
        multi_label=False,
        language=None,
        top_k=None,
        threshold=None,
        long_text=long_text,
        pooling=Pooling.MEAN,
        normalize=False,
        attributes={},
    )
