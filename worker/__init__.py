"""xnli-worker: zero-shot classification, entailment and embeddings between Kafka topics."""

__version__ = "0.1.0"
