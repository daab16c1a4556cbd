"""Trains the tiny tokenizers anew: ``python -m tests.families.training``. The golden data must follow."""

from __future__ import annotations

import io
import json
from typing import Any

import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.families.text import SENTENCES
from tests.families.tokenizers import FILES

# These pieces of transformers and protobuf have no or wrong types.
_XLM_ROBERTA: Any = transformers.XLMRobertaTokenizer
_DEBERTA_V2: Any = transformers.DebertaV2Tokenizer
_BERT: Any = transformers.BertTokenizer
_ROBERTA: Any = transformers.RobertaTokenizer
_PLAIN: Any = transformers.PreTrainedTokenizerFast
_PROTOCOL: Any = sentencepiece_model_pb2


def _unigram() -> tuple[list[tuple[str, float]], bytes]:
    """Train SentencePiece: its pieces without <unk>, <s>, </s>, and its compiled normalisation. Needs protobuf."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=file,
        model_type="unigram",
        vocab_size=1200,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    model = _PROTOCOL.ModelProto()
    model.ParseFromString(file.getvalue())
    return [(piece.piece, piece.score) for piece in model.pieces[3:]], model.normalizer_spec.precompiled_charsmap


def _train_unigram() -> None:
    pieces, character_map = _unigram()
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    _XLM_ROBERTA(
        [*special, *pieces, ("<mask>", 0.0)], _spm_precompiled_charsmap=character_map, model_max_length=512
    ).save_pretrained(FILES / "xlm-roberta")
    special = [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)]
    _DEBERTA_V2([*special, *pieces, ("[MASK]", 0.0)]).save_pretrained(FILES / "deberta-v2")


def _train_wordpiece() -> None:
    backend = _BERT().backend_tokenizer
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special))
    _BERT(backend.get_vocab(), model_max_length=512).save_pretrained(FILES / "bert")


def _train_byte_level() -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, initial_alphabet=letters)
    backend.train_from_iterator(SENTENCES, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    merges = [tuple(merge) for merge in model["merges"]]
    _ROBERTA(vocab, merges, model_max_length=512).save_pretrained(FILES / "roberta")


def _train_modernbert() -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens(["  "])  # the published one has runs of blanks
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    _PLAIN(
        tokenizer_object=backend, model_max_length=512, model_input_names=["input_ids", "attention_mask"], **names
    ).save_pretrained(FILES / "modernbert")


def _train_xlm() -> None:
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    special = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10))]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, end_of_word_suffix="</w>")
    backend.train_from_iterator([sentence.lower() for sentence in SENTENCES], trainer)
    model = json.loads(backend.to_str())["model"]
    folder = FILES / "xlm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False, indent=0), encoding="utf-8")
    lines = "".join(f"{left} {right} {rank}\n" for rank, (left, right) in enumerate(model["merges"]))
    (folder / "merges.txt").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    _train_unigram()
    _train_wordpiece()
    _train_byte_level()
    _train_modernbert()
    _train_xlm()
