"""The architectures that are served, by transformers' ``model_type``: those whose rows are independent of one another.

A batch mixes rows of many messages, and a row is padded to the longest of its slice. Some architectures give a row
other scores for that: ConvBERT convolves over padding, Funnel pools over it, FNet mixes without a mask, XLNet
classifies by the last token, padding or not, and decoders find theirs by the padding id, which many do not have. One
message would change another's result. So a family is served only if test_served_families.py proves it.
"""

from __future__ import annotations

from typing import Any

from worker.errors import CheckpointError

# Positions begin with the one after the padding id (transformers: create_position_ids_from_input_ids), so that there
# are as many fewer of them.
AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
# Relative positions: no length is too long.
RELATIVE = frozenset({"mt5", "t5"})
FAMILIES = (
    frozenset(
        {
            "albert",
            "bart",
            "bert",
            "deberta",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "eurobert",
            "gte",
            "mbart",
            "megatron-bert",
            "modernbert",
            "nomic_bert",
            "rembert",
            "roformer",
            "squeezebert",
            "xlm",
        }
    )
    | AFTER_PADDING
    | RELATIVE
)


def require(family: object, name: str) -> None:
    """Refuse a checkpoint that says ``model_type = family``, unless it is one of `FAMILIES`.

    Raises:
        CheckpointError: it is none of them.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"config.json of {name} says model_type = {family!r}. Served are {', '.join(sorted(FAMILIES))}: of these "
            "it is proven that a message's scores do not depend on the messages beside it. Choose a checkpoint of one "
            "of them; code from the repository is never run"
        )


def positions(config: Any, name: str) -> int | None:
    """How many tokens of a row the model has positions for; None: any number.

    Args:
        config: transformers' configuration of the checkpoint.
        name: what messages call it.

    Raises:
        CheckpointError: the config says no number, or one that leaves no position.
    """
    if config.model_type in RELATIVE:
        return None
    count = getattr(config, "max_position_embeddings", None)
    if isinstance(count, bool) or not isinstance(count, int):
        raise CheckpointError(
            f"config.json of {name} says max_position_embeddings = {count!r}: it must be a whole number"
        )
    if config.model_type in AFTER_PADDING:
        padding = config.pad_token_id
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise CheckpointError(
                f"config.json of {name} says pad_token_id = {padding!r}, but a {config.model_type} counts positions "
                "from it: it must be the tokenizer's padding id, as a rule 1"
            )
        count -= padding + 1
    return count
