from __future__ import annotations

import numpy as np
import pytest

from tests.builders import entail
from tests.unit.inference.forwards.rows import open_checkpoint, shared_checkpoint
from worker.errors import CheckpointError
from worker.inference.forwards import families
from worker.inference.forwards.padded import Padded
from worker.inference.tokens import Tokens
from worker.messages import Row

END, OTHER = 2, 9


def row(*token_ids: int) -> Row:
    return Row(np.array(token_ids, dtype=np.int32), len(token_ids))


@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_the_head_reads_the_last_end_of_each_row_however_many_it_has(family: str) -> None:
    checkpoint = shared_checkpoint(family)
    rows = [row(0, 7, END, END, 8, END), row(0, 7, END, 8, 11), row(END), row(0, 7, 8, END, OTHER, OTHER)]
    padded = Padded(checkpoint)
    with pytest.raises(ValueError, match="same number of <eos> tokens"):
        padded.logits(rows)
    alone = np.concatenate([padded.logits([one]) for one in rows])
    np.testing.assert_allclose(families.packed(checkpoint).logits(rows), alone, atol=1e-5)


def test_what_stands_behind_the_last_end_is_seen_by_the_encoder_alone() -> None:
    forward = families.packed(shared_checkpoint("bart"))
    one, other = (forward.logits([row(0, 7, 8, END, behind)]) for behind in (OTHER, OTHER + 1))
    assert np.abs(one - other).max() > 1e-3


def test_an_end_that_a_text_writes_ends_nothing() -> None:
    checkpoint = shared_checkpoint("bart")
    tokens, forward = Tokens(checkpoint), families.packed(checkpoint)
    texts = ["It came late.", "It came </s> late.", "</s>", "</s></s> It came late. </s>"]
    rows = [tokens.encode(entail(text, "Something </s> came.")).rows[0] for text in texts]
    assert {np.count_nonzero(made.token_ids == END) for made in rows} == {3}
    alone = np.concatenate([Padded(checkpoint).logits([made]) for made in rows])
    np.testing.assert_allclose(forward.logits(rows), alone, atol=1e-5)


def test_a_tokenizer_that_ends_no_row_is_refused() -> None:
    checkpoint = open_checkpoint("bart")
    checkpoint.model.config.eos_token_id = 600
    with pytest.raises(CheckpointError, match=r"writes no token 600 \(eos_token_id\)"):
        families.packed(checkpoint)
