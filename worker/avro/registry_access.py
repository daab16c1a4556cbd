"""What the registry's client is told of who we are and whom we trust."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Credentials for a token by the client-credentials grant (RFC 6749, section 4.4)."""

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None
    logical_cluster: str = ""
    identity_pool: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who we are to the registry, and whom we take it for. At most one of user name, token and OAuth client is set.

    ``ca`` is a PEM file or a folder of them; ``certificate`` and ``key`` are PEM files of a client certificate.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    oauth: OAuthClient | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
