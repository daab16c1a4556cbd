"""What transformers itself computes, in fp32, one pair at a time: nothing of ours takes part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

Vector = npt.NDArray[np.float32]


class Reference:
    """A checkpoint as transformers loads it."""

    def __init__(self, directory: Path, *, max_length: int = 512) -> None:
        automatic: Any = transformers
        self._tokenizer = automatic.AutoTokenizer.from_pretrained(directory, model_max_length=max_length)
        self._model = automatic.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
        self.languages: dict[str, int] = getattr(self._model.config, "lang2id", None) or {}

    def pipeline(
        self, text: str, labels: Sequence[str], *, template: str, multi_label: bool
    ) -> list[tuple[str, float]]:
        """Labels and scores of the zero-shot pipeline, in its order."""
        make: Any = transformers.pipeline
        pipe = make("zero-shot-classification", model=self._model, tokenizer=self._tokenizer, device="cpu")
        found = pipe(text, list(labels), hypothesis_template=template, multi_label=multi_label)
        return list(zip(found["labels"], found["scores"], strict=True))

    @torch.inference_mode()
    def logits(self, premise: str, hypothesis: str, language: str | None = None) -> Vector:
        """Class logits, (classes,)."""
        inputs = self._tokenizer(premise, hypothesis, truncation="only_first", return_tensors="pt")
        logits: Vector = self._model(**self._with_language(inputs, language)).logits[0].numpy()
        return logits

    @torch.inference_mode()
    def states(self, text: str, language: str | None = None) -> Vector:
        """The bare model's last hidden states, (tokens, hidden size)."""
        inputs = self._tokenizer(text, truncation=True, return_tensors="pt")
        states: Vector = self._model.base_model(**self._with_language(inputs, language)).last_hidden_state[0].numpy()
        return states

    def _with_language(self, inputs: Any, language: str | None) -> dict[str, torch.Tensor]:
        if language is not None and self.languages:
            inputs["langs"] = torch.full_like(inputs["input_ids"], self.languages[language])
        return dict(inputs)
