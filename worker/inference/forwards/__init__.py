"""The forwards: one pass of rows through a model, one file a family of architectures.

`families` says which takes which. Packed are `encoder` (BERT, RoBERTa and their relatives), `bart`, `deberta`,
`modernbert` and `xlm`; `padded` is every other, as transformers runs it.

What the packed ones share: `packing` lays rows end to end, `packed` runs a family's model over them, `layers` is the
transformer layer, `attention` keeps each row to itself, `groups` makes rows dense where attention has a bias, `linear`
multiplies as this device does it fastest, `linear_int8` in 8-bit integers, `linear_int4` with weights kept in 4 bits.
"""
