"""How a registry is reached: its client with credentials, TLS and redirects as the settings have them.

Importing this takes half a second, which runs without a registry need not pay: import it where it is used.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx2
from confluent_kafka.schema_registry import SchemaRegistryClient

from worker.avro.registry_access import Access, OAuthClient
from worker.errors import SettingsError
from worker.rules import addresses

_REDIRECTS: Final = frozenset({301, 302, 307, 308})
_MAX_REDIRECTS: Final = 5
# Sent with every request, and none of another host's business.
_CREDENTIALS: Final = frozenset({"authorization", "target-sr-cluster", "confluent-identity-pool-id"})
# A token is renewed when so much of its life has passed; where its life is not told, it is taken to be short.
_RENEW_AFTER: Final = 0.8
_LIFE_S: Final = 300.0


class TokenRefusedError(Exception):
    """The token's issuer does not let us in. ``http_status_code`` is its answer's, as of a registry's own errors."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.http_status_code = status


class RedirectError(Exception):
    """A registry sends us where we do not go, and the text says where and why not."""


def connect(url: str, access: Access, timeout_s: float) -> SchemaRegistryClient:
    """A client that asks each question once: who calls it knows how to wait, and retries would block his thread.

    Raises:
        SettingsError: the address cannot be one, or a certificate cannot be used.
    """
    problem = addresses.web_problem(url, "set schema_registry.username and schema_registry.password")
    if problem is not None:
        shown = f" = {url!r}" if addresses.may_be_shown(url) else " (not shown)"
        raise SettingsError(f"schema_registry.url{shown}: {problem}")
    conf: dict[str, Any] = {"url": url, "timeout": timeout_s, "max.retries": 0}
    if access.username is not None:
        conf["basic.auth.user.info"] = f"{access.username}:{access.password or ''}"
    if access.token is not None:
        # The client insists on a cluster to go with the token; registries other than Confluent's cloud ignore it.
        conf |= {
            "bearer.auth.credentials.source": "STATIC_TOKEN",
            "bearer.auth.token": access.token,
            "bearer.auth.logical.cluster": "",
        }
    trusted = _trusted(access)
    if access.oauth is not None:
        conf |= {
            "bearer.auth.credentials.source": "CUSTOM",
            "bearer.auth.custom.provider.function": _Tokens(access.oauth, trusted, timeout_s),
            "bearer.auth.custom.provider.config": {},
        }
    client = SchemaRegistryClient(conf)
    rest = client._rest_client  # noqa: SLF001 (it follows no redirect, and has no setting for that)
    rest.session.close()
    rest.session = _Session(verify=trusted, auth=rest.auth, timeout=timeout_s)
    return client


def _trusted(access: Access) -> ssl.SSLContext:
    """Whom to trust, and the certificate to show."""
    # The environment's variables are OpenSSL's own, and the HTTP library heeds them as well.
    context = httpx2.create_ssl_context()
    if access.ca is not None:
        try:
            is_folder = Path(access.ca).is_dir()
            context = ssl.create_default_context(
                cafile=None if is_folder else access.ca, capath=access.ca if is_folder else None
            )
        except OSError as error:
            raise SettingsError(
                f"schema_registry.ca = {access.ca!r}: {_why(error)}; name a PEM file of certificates"
            ) from None
    if access.certificate is not None:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(access.certificate, access.key, password=access.key_password or "")
        except OSError as error:
            raise SettingsError(
                f"schema_registry.certificate = {access.certificate!r} with key = {access.key!r}: {_why(error)}; name "
                "PEM files that belong together, and set schema_registry.key_password if the key is encrypted"
            ) from None
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)


class _Tokens:
    """Fetches access tokens, and renews them in time."""

    def __init__(
        self, oauth: OAuthClient, trusted: ssl.SSLContext, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._oauth = oauth
        self._clock = clock
        self._session = httpx2.Client(verify=trusted, timeout=timeout_s)
        self._token = ""
        self._renew_at_s = 0.0

    def __call__(self, _config: object) -> dict[str, str]:
        """What the registry's client sends."""
        if not self._token or self._clock() >= self._renew_at_s:
            self._fetch()
        fields = {"bearer.auth.token": self._token, "bearer.auth.logical.cluster": self._oauth.logical_cluster}
        if self._oauth.identity_pool is not None:
            fields["bearer.auth.identity.pool.id"] = self._oauth.identity_pool
        return fields

    def forget(self) -> None:
        """Fetch another the next time: the registry does not take this one."""
        self._token = ""

    def _fetch(self) -> None:
        oauth = self._oauth
        form = {"grant_type": "client_credentials"} | ({"scope": oauth.scope} if oauth.scope is not None else {})
        # RFC 6749, section 2.3.1: both are form-encoded before they become a user name and a password.
        user = (quote(oauth.client_id, safe=""), quote(oauth.client_secret, safe=""))
        asked_s = self._clock()
        response = self._session.post(oauth.token_url, data=form, auth=user, headers={"Accept": "application/json"})
        if response.status_code != httpx2.codes.OK:
            raise TokenRefusedError(
                response.status_code,
                f"schema_registry.oauth_token_url = {oauth.token_url!r} answers {response.status_code} and gives "
                "no token",
            )
        answer = response.json()
        token, life_s = answer.get("access_token"), answer.get("expires_in", _LIFE_S)
        if not isinstance(token, str) or not token:
            raise ValueError(f"{oauth.token_url} answers without an access_token")
        self._token = token
        self._renew_at_s = asked_s + float(life_s) * _RENEW_AFTER


def forget_token(client: SchemaRegistryClient) -> None:
    """Have a token fetched anew, where tokens are fetched."""
    tokens: Any = getattr(client._rest_client.bearer_field_provider, "custom_function", None)  # noqa: SLF001 (see connect)
    if isinstance(tokens, _Tokens):
        tokens.forget()


class _Session(httpx2.Client):
    """Follows redirects with the same method and body.

    A browser turns a POST that is redirected by 301 or 302 into a GET, and the library with it, but a registry is asked
    for schemas by POST. Credentials go to the host that they are meant for alone, and never from TLS to plain text.
    """

    def request(self, method: str, url: httpx2.URL | str, **options: Any) -> httpx2.Response:
        """A request and its answer, behind `_MAX_REDIRECTS` redirects at most."""
        response = super().request(method, url, **options)
        for _ in range(_MAX_REDIRECTS):
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            came_from = response.request.url
            target = came_from.join(location).copy_with(userinfo=b"")
            if came_from.scheme == "https" and target.scheme != "https":
                raise RedirectError(f"{came_from} sends us on to {target}, which is not encrypted")
            if came_from.host != target.host:
                kept = {name: value for name, value in options["headers"].items() if name.lower() not in _CREDENTIALS}
                options = options | {"headers": kept, "auth": None}
            response = super().request(method, target, **options | {"params": None})
        if response.status_code in _REDIRECTS:
            raise RedirectError(
                f"{url} sends us on more than {_MAX_REDIRECTS} times, last to "
                f"{response.headers.get('location')}; set schema_registry.url to where the registry is"
            )
        return response
