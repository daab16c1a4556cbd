"""The tiny tokenizers, one for each kind that published NLI checkpoints use, kept as files.

They are kept, not trained at test time, so that golden token ids change only when transformers or tokenizers read the
same files differently (and because training is not repeatable). `tests.families.training` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

FILES = Path(__file__).parent / "files"
XLM_LANGUAGES = {"ar": 0, "bg": 1, "de": 2, "el": 3, "en": 4, "es": 5, "fr": 6, "ru": 7, "sw": 8, "ur": 9, "zh": 10}


def xlm_roberta() -> PreTrainedTokenizerBase:
    """SentencePiece unigram with XLM-R's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last."""
    return _load(transformers.XLMRobertaTokenizer, "xlm-roberta")


def deberta_v2() -> PreTrainedTokenizerBase:
    """SentencePiece unigram with DeBERTa-v3's ids: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, [MASK] last."""
    return _load(transformers.DebertaV2Tokenizer, "deberta-v2")


def bert() -> PreTrainedTokenizerBase:
    """WordPiece, uncased."""
    return _load(transformers.BertTokenizer, "bert")


def distilbert() -> PreTrainedTokenizerBase:
    """BERT's WordPiece, whose token types the model does not take."""
    return _load(transformers.DistilBertTokenizer, "bert")


def roberta() -> PreTrainedTokenizerBase:
    """Byte-level BPE with RoBERTa's ids; BART uses the same."""
    return _load(transformers.RobertaTokenizer, "roberta")


def modernbert() -> PreTrainedTokenizerBase:
    """Byte-level BPE between BERT's special tokens, which follow the pieces, without token types."""
    return _load(transformers.PreTrainedTokenizerFast, "modernbert")


def xlm() -> PreTrainedTokenizerBase:
    """Moses and fastBPE, in Python, with XLM's ids: <s> 0, </s> 1, <pad> 2, <unk> 3, <special0> 4 and on."""
    make: Any = transformers.XLMTokenizer
    words: PreTrainedTokenizerBase = make(
        str(FILES / "xlm" / "vocab.json"),
        str(FILES / "xlm" / "merges.txt"),
        lang2id=XLM_LANGUAGES,
        id2lang={number: code for code, number in XLM_LANGUAGES.items()},
    )
    return words


def _load(kind: Any, name: str) -> PreTrainedTokenizerBase:
    words: PreTrainedTokenizerBase = kind.from_pretrained(FILES / name)
    return words
