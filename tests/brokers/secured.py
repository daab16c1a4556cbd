"""Real Kafka that lets nobody in without a name: SCRAM, OAUTHBEARER and client certificates, each on a port of its own.

What an ACL does not allow is forbidden. The plain listener is the administrator's.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final, Self

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.brokers.certificates import Authority
from tests.brokers.kafka import KafkaCluster
from tests.brokers.ports import free_ports

_AUDIENCE: Final = "kafka"
_NODE: Final = "1"
_SECURITY: Final = "org.apache.kafka.common.security"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class TokenServer:
    """An OAuth server: tokens for the client credentials it knows, and the key that they are signed by.

    ``clients`` holds the secrets by client; the client's name is the principal.
    """

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self.issued = 0
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, server._keys())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind, _, given = self.headers.get("Authorization", "").partition(" ")
                client, _, secret = base64.b64decode(given).decode().partition(":") if kind == "Basic" else ("", "", "")
                if server.clients.get(client) != secret:
                    self._answer(401, {"error": "invalid_client"})
                    return
                self._answer(200, server._token(client))

            def _answer(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's signature)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        modulus = numbers.n.to_bytes(256, "big")
        return {
            "keys": [{"kty": "RSA", "kid": "test", "alg": "RS256", "use": "sig", "n": _encoded(modulus), "e": "AQAB"}]
        }

    def _token(self, client: str) -> dict[str, Any]:
        self.issued += 1
        now_s = int(time.time())
        header = {"alg": "RS256", "typ": "JWT", "kid": "test"}
        claims = {
            "sub": client,
            "aud": _AUDIENCE,
            "iss": self.url,
            "iat": now_s,
            "exp": now_s + 300,
            "jti": str(self.issued),
        }
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return {"access_token": f"{signed}.{_encoded(signature)}", "token_type": "Bearer", "expires_in": 300}

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class SecuredKafka(KafkaCluster):
    """One node. ``scram``, ``oauth`` and ``mutual_tls`` are the addresses of its listeners.

    Args:
        authority: Signs the broker's certificate, and those of clients that are let in by theirs.
        folder: Where PEM files may be written.
        tokens: Whose tokens are believed.
    """

    def __init__(self, authority: Authority, folder: Path, tokens: TokenServer) -> None:
        super().__init__()
        self._authority = authority
        self._folder = folder
        self._tokens = tokens
        self.jvm_flags = (f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={tokens.url}/jwks",)
        self.scram, self.oauth, self.mutual_tls = (f"127.0.0.1:{port}" for port in free_ports(3))
        self._keystore = self._issue("broker-1")

    def _issue(self, file: str) -> Path:
        """Key and certificate in one PEM file, as the broker reads them. Its name must stay when it rotates."""
        certificate, key = self._authority.issue("broker", file=file)
        both = self._folder / f"{file}-keystore.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return both

    def _configuration(self, node: Any) -> dict[str, str]:
        plain = super()._configuration(node)
        listeners = {"SCRAM": self.scram, "OAUTH": self.oauth, "MTLS": self.mutual_tls}
        return plain | {
            "listeners": ",".join([plain["listeners"], *(f"{name}://{at}" for name, at in listeners.items())]),
            "listener.security.protocol.map": plain["listener.security.protocol.map"]
            + ",SCRAM:SASL_SSL,OAUTH:SASL_SSL,MTLS:SSL",
            "inter.broker.listener.name": "PLAINTEXT",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._authority.ca),
            "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{_SECURITY}.scram.ScramLoginModule required;",
            "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
            "listener.name.oauth.oauthbearer.sasl.jaas.config": (
                f"{_SECURITY}.oauthbearer.OAuthBearerLoginModule required;"
            ),
            "listener.name.oauth.oauthbearer.sasl.server.callback.handler.class": (
                f"{_SECURITY}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
            "listener.name.oauth.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": f"{self._tokens.url}/jwks",
            "listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.audience": _AUDIENCE,
            "listener.name.oauth.oauthbearer.sasl.oauthbearer.expected.issuer": self._tokens.url,
            "listener.name.mtls.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
        }

    def add_user(self, name: str, password: str) -> None:
        """Let somebody in by SCRAM."""
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertion = UserScramCredentialUpsertion(name, credential, password.encode())
        admin = self.admin()  # held until the answer: a client that is collected takes its requests with it
        for answer in admin.alter_user_scram_credentials([upsertion]).values():
            answer.result(timeout=30)

    def rotate(self, file: str) -> None:
        """Put another certificate, of a file so called, in the place of the broker's while it runs."""
        entries = [
            ConfigEntry(
                f"listener.name.{listener}.ssl.keystore.location",
                str(self._issue(file)),
                incremental_operation=AlterConfigOpType.SET,
            )
            for listener in ("scram", "oauth", "mtls")
        ]
        resource = ConfigResource(ResourceType.BROKER, _NODE, incremental_configs=entries)
        admin = self.admin()
        for answer in admin.incremental_alter_configs([resource]).values():
            answer.result(timeout=30)

    def grant(self, acls: Iterable[AclBinding]) -> None:
        """Allow."""
        acls = list(acls)
        if not acls:
            return
        admin = self.admin()
        for answer in admin.create_acls(acls).values():
            answer.result(timeout=30)

    def withdraw(self, acls: Iterable[AclBinding]) -> None:
        """Allow no longer."""
        filters = [
            AclBindingFilter(
                acl.restype,
                acl.name,
                acl.resource_pattern_type,
                acl.principal,
                acl.host,
                acl.operation,
                acl.permission_type,
            )
            for acl in acls
        ]
        admin = self.admin()
        for answer in admin.delete_acls(filters).values():
            answer.result(timeout=30)

    def __enter__(self) -> Self:
        self.start()
        return self


def allowed(
    principal: str, kind: ResourceType, name: str, operation: AclOperation, *, prefixed: bool = False
) -> AclBinding:
    """One line of an ACL."""
    pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
    return AclBinding(kind, name, pattern, f"User:{principal}", "*", operation, AclPermissionType.ALLOW)
