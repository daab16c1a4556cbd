"""Pure decisions: no clock, no thread, no Kafka, no torch, no environment."""
