"""Pure decisions: no clock, thread, Kafka, torch or environment; `now` is an argument."""
