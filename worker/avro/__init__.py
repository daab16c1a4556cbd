"""Bytes from strangers to requests, outcomes to bytes, and the registry that names their schemas."""
