"""Loopback ports for servers that have to come back on the port they had."""

from __future__ import annotations

import random
import socket

# Below the range Linux takes client ports from (32768 on), so that no client's socket sits on a killed server's port
# when the server returns.
_LOWEST, _HIGHEST = 20_000, 32_000


def free_ports(count: int) -> list[int]:
    """``count`` distinct ports that nothing listened on a moment ago."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(_LOWEST, _HIGHEST), k=_HIGHEST - _LOWEST):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} free ports between {_LOWEST} and {_HIGHEST} on 127.0.0.1")
