"""Addresses of brokers and registries: what they may look like, and which may be shown. Pure.

A password in an address would reach log lines, for librdkafka and HTTP clients name the address in whatever they say.
So none is accepted, in whatever form it is written, and an address that has room for one is not shown either.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)"
_WEB: Final = re.compile(rf"https?://{_HOST}(?::(?P<port>\d{{1,5}}))?(?:/[\w./~+-]*)?", re.IGNORECASE)
_SERVER: Final = re.compile(rf"(?:[A-Za-z_]+://)?{_HOST}(?::(?P<port>\d{{1,5}}))?")
# No part of it can be a password that belongs to a user name.
_PLAIN: Final = re.compile(r"(?:[\w+.-]+://)?(?:\[[0-9A-Fa-f:.]*\]|[\w.-]*)(?::\d*)?(?:/[\w./~+-]*)?")
_HIGHEST_PORT: Final = 65_535


def web_problem(addresses: str, instead: str) -> str | None:
    """Why these will not do as addresses of a web service, one or several with commas between; None if they will.

    Args:
        addresses: What is set.
        instead: Where credentials belong.
    """
    for address in addresses.split(","):
        if "@" in address:
            return f"holds credentials, which would end up in logs: {instead}"
        if not _fits(_WEB, address.strip()):
            return "write http://host:port or https://host:port, and a path behind it if there is one"
    return None


def servers_problem(servers: str) -> str | None:
    """Why these will not do as Kafka's bootstrap servers; None if they will."""
    if "@" in servers:
        return "holds credentials, which would end up in logs: set sasl.username and sasl.password in kafka.properties"
    named = [server.strip() for server in servers.split(",") if server.strip()]
    if not named or not all(_fits(_SERVER, server) for server in named):
        return "write host:port, or several with commas between"
    return None


def may_be_shown(addresses: str) -> bool:
    """Whether no part of what was written for an address can be a password."""
    return all(_PLAIN.fullmatch(address.strip()) for address in addresses.split(","))


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fits(pattern: re.Pattern[str], address: str) -> bool:
    found = pattern.fullmatch(address)
    return found is not None and int(found["port"] or 0) <= _HIGHEST_PORT
