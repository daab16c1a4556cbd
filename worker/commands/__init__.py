"""What a person types: one module a command. `worker.cli` parses and dispatches."""
