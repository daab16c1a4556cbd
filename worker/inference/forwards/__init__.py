"""One file a family of architectures, and what they share."""
