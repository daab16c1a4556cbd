"""The forwards: one pass of rows through a model, one file a family of architectures.

Families: `encoder` (BERT, RoBERTa, packed) and `padded` (every other, as transformers runs it).

What families share: `packing` lays rows end to end, `attention` keeps each row to itself, `linear` multiplies as this
device does it fastest, `linear_int8` in 8-bit integers.
"""
