"""Labelled examples: what a model is worth on them, and how its scores become probabilities. See docs/learn.md."""
