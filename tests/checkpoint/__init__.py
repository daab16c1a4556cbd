"""Trains the small multilingual NLI checkpoint that ships as package data for the demo and the semantic tests.

Read it in this order: `languages/*.toml` (what is said, written for this program), `lexicon` (the same as
dataclasses), `corpus` (premise-hypothesis pairs and the held-out split), `vocabulary` (the tokenizer), `train` (the
model) and `report` (the accuracy per language and the model card). Nothing here is installed with the worker.
"""
