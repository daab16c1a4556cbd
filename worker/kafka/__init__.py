"""The broker: consumer, publishers, the loop between them, and the embedded broker."""
