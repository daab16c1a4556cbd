"""The demonstration: a shipped checkpoint, sample messages in fifteen languages, and the command that plays them."""
