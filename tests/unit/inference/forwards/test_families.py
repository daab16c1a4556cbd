from __future__ import annotations

import pytest
import transformers

from tests import families as checkpoints
from tests.unit.inference.forwards.rows import shared_checkpoint
from worker.inference.forwards import families
from worker.inference.forwards.packed import Packed
from worker.inference.forwards.padded import Padded


@pytest.mark.parametrize(("family", "forward"), [("bart", Packed), ("mpnet", Padded)])
def test_a_family_is_packed_where_there_is_a_line_for_it(family: str, forward: type) -> None:
    assert isinstance(families.choose(shared_checkpoint(family)), forward)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {"is_decoder": True}),
        ("bart", {"is_encoder_decoder": False}),
        # Its convolution runs over neighbouring tokens, whatever row they belong to.
        ("deberta-v2", {"conv_kernel_size": 3}),
        ("deberta-v2", {"relative_attention": False}),
        ("deberta-v2", {"pos_att_type": ["c2p"]}),
        # These angles depend on the longest row of a batch.
        (
            "modernbert",
            {"rope_parameters": {name: {"rope_type": "dynamic"} for name in ("full_attention", "sliding_attention")}},
        ),
        ("xlm", {"causal": True}),
        ("xlm", {"summary_type": "mean"}),
    ],
)
def test_what_its_forward_does_not_compute_is_padded(family: str, changes: dict[str, object]) -> None:
    config = transformers.AutoConfig.from_pretrained(checkpoints.checkpoint(family))
    assert families.is_packed(config)
    for name, value in changes.items():
        setattr(config, name, value)
    assert not families.is_packed(config)
