"""What an operator sees: structured logs, Prometheus metrics, the health endpoint.

Nothing here decides anything. The stages report what happened; these modules make it visible.
"""
