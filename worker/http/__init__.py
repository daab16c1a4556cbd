"""What the worker answers over HTTP: health, readiness and metrics."""
