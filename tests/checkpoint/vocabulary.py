"""The tokenizer: SentencePiece-style Unigram with XLM-RoBERTa's special tokens, ids and normalisation."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import XLMRobertaTokenizer

from tests.checkpoint.lexicon import BOUNDARY, languages

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in XLM-RoBERTa; <mask> is the last id
MAX_TOKENS = 512
MAX_PIECE_CHARS = 12
CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "·«»„“”‘’–—…¿¡€"  # known even if unused


def character_map() -> bytes:
    """SentencePiece's compiled NFKC rules (`nmt_nfkc`), the normalisation of XLM-RoBERTa.

    transformers keeps a normaliser of this family over a reload only as such a map, so a throw-away SentencePiece
    model is trained for the map that it carries.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 10),
        model_writer=model,
        vocab_size=10,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.getvalue())
    rules: bytes = proto.normalizer_spec.precompiled_charsmap
    return rules


def train(size: int) -> XLMRobertaTokenizer:
    """A tokenizer of about `size` pieces over the lexicon of every language."""
    rules = character_map()
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(rules)
    # Words that no space separates are learnt without the leading "▁" that only the first of them carries in a text.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(BOUNDARY, "removed"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size - 1,
        special_tokens=list(SPECIAL),
        unk_token=SPECIAL[3],
        max_piece_length=MAX_PIECE_CHARS,
        show_progress=False,
    )
    strings = [each for language in languages().values() for each in language.strings]
    # Both cases are seen, so that a capital letter does not break a word into letters.
    tokenizer.train_from_iterator([*strings, *(each.lower() for each in strings), *CHARACTERS], trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(
        vocab=[*pieces, ("<mask>", 0.0)],
        model_max_length=MAX_TOKENS,
        _spm_precompiled_charsmap=rules,  # type: ignore[arg-type]
    )


def read(directory: Path) -> XLMRobertaTokenizer:
    """The tokenizer of a checkpoint."""
    tokenizer: XLMRobertaTokenizer = XLMRobertaTokenizer.from_pretrained(directory)
    return tokenizer


def save(tokenizer: XLMRobertaTokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, without where the tokenizer was read from."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in {"is_local", "local_files_only"}}
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
