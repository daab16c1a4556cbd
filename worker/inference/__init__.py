"""The model: checkpoints, tokens, forwards, and the engine that joins them.

Importable with neither Kafka nor Avro nor settings libraries installed. Logs go to the logger ``worker.inference``.
"""
