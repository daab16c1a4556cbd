"""Redirects, TLS, OAuth and rules, on real sockets: the loopback registry, and servers of these tests before it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

import pytest
from confluent_kafka.schema_registry import Rule, RuleKind, RuleMode, RuleParams, RuleSet, Schema, SchemaRegistryClient

from tests.brokers.answering import answering, redirecting
from tests.brokers.certificates import Authority
from tests.brokers.registry import LoopbackRegistry
from tests.brokers.secured import TokenServer
from worker.avro import json_request
from worker.avro.codec import REQUEST, RESULT, open_codecs, schema_folder
from worker.avro.framing import Framing
from worker.avro.registry import Registry
from worker.avro.registry_access import Access, OAuthClient
from worker.avro.schema_walk import schema
from worker.errors import Reason, RegistryAway, Rejection, SettingsError
from worker.settings import SchemaRegistrySettings

RESULT_TEXT = (schema_folder() / RESULT).read_text("utf-8")
REQUEST_TEXT = (schema_folder() / REQUEST).read_text("utf-8")
FINGERPRINT = schema(REQUEST_TEXT).fingerprint
DATUM = json_request.request({"id": "1", "text": "hello", "labels": ["a"]})
BASIC = "Basic bWU6c2VjcmV0"


def register(registry: LoopbackRegistry, text: str, rules: RuleSet | None = None) -> int:
    with SchemaRegistryClient({"url": registry.url}) as client:
        return int(client.register_schema("in-value", Schema(text, "AVRO", rule_set=rules)))


def read(registry: Registry, number: int) -> str:
    return registry.schema(Framing.CONFLUENT_ID, str(number)).fingerprint


def find_ours(registry: Registry) -> None:
    registry.registered("out-value", RESULT, RESULT_TEXT, register=False)


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_they_are_followed_with_method_body_and_credentials(
        self, loopback_registry: LoopbackRegistry, status: int
    ) -> None:
        number = register(loopback_registry, REQUEST_TEXT)
        with answering(redirecting(status, loopback_registry.url)) as url:
            registry = Registry(url, access=Access("me", "secret"))
            assert read(registry, number) == FINGERPRINT
            assert registry.registered("out-value", RESULT, RESULT_TEXT, register=True).schema_id is not None
            find_ours(registry)
        assert loopback_registry.authorizations[-3:] == [BASIC] * 3

    @pytest.mark.parametrize("access", [Access("me", "secret"), Access(token="sesame")])  # noqa: S106 (of the test)
    def test_another_host_gets_no_credentials(self, loopback_registry: LoopbackRegistry, access: Access) -> None:
        number = register(loopback_registry, REQUEST_TEXT)
        elsewhere = loopback_registry.url.replace("127.0.0.1", "me:stolen@localhost")
        with answering(redirecting(302, elsewhere)) as url:
            assert read(Registry(url, access=access), number) == FINGERPRINT
        assert loopback_registry.authorizations[-1] is None

    def test_a_circle_is_an_outage_and_says_where_it_leads(self) -> None:
        asked: list[str] = []

        def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            asked.append(handler.path)
            redirecting(307, f"http://me:secret@127.0.0.1:{handler.server.server_port}")(handler, body)  # type: ignore[attr-defined]

        with (
            answering(answer) as url,
            pytest.raises(RegistryAway, match=r"more than 5 times.*schema_registry\.url") as away,
        ):
            read(Registry(url), 1)
        assert "secret" not in str(away.value)
        assert len(asked) == 6


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TestTls:
    @pytest.fixture
    def guarded(self, authority: Authority) -> Iterator[LoopbackRegistry]:
        """A registry that shows a certificate of the authority, and demands one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("server"))
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        with LoopbackRegistry(context) as registry:
            yield registry

    def test_a_private_authority_and_a_client_certificate(
        self, guarded: LoopbackRegistry, authority: Authority, loopback_registry: LoopbackRegistry
    ) -> None:
        certificate, key = authority.issue("client", password="open")  # noqa: S106 (of the test)
        settings = SchemaRegistrySettings.model_validate(
            {
                "url": guarded.url,
                "ca": str(authority.ca),
                "certificate": str(certificate),
                "key": str(key),
                "key_password": "open",
                "auto_register": True,
            }
        )
        codecs = open_codecs(settings)
        codecs.open(result_topic="out", request_topic="in")
        assert codecs.read_request(*codecs.encode_request(DATUM))["id"] == "1"
        access = Access(
            ca=settings.ca,
            certificate=settings.certificate,
            key=settings.key,
            key_password="open",  # noqa: S106 (of the test)
        )
        with answering(redirecting(301, guarded.url)) as url:
            assert read(Registry(url, access=access), 2) == FINGERPRINT
        with pytest.raises(RegistryAway, match=r"CERTIFICATE_VERIFY_FAILED.*set schema_registry\.ca"):
            read(Registry(guarded.url), 1)
        with pytest.raises(RegistryAway):
            read(Registry(guarded.url, access=Access(ca=settings.ca)), 1)

    def test_tls_is_not_left_again(self, authority: Authority, loopback_registry: LoopbackRegistry) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("plain"))

        with LoopbackRegistry(context) as secure:
            answers = secure._server
            assert answers is not None
            answers.RequestHandlerClass.do_GET = lambda handler: redirecting(307, loopback_registry.url)(handler, b"")  # type: ignore[attr-defined]
            with pytest.raises(RegistryAway, match="which is not encrypted"):
                read(Registry(secure.url, access=Access("me", "secret", ca=str(authority.ca))), 1)
        assert loopback_registry.requests == []

    @pytest.mark.parametrize(
        ("access", "said"),
        [
            (Access(ca="/absent.pem"), "schema_registry.ca = '/absent.pem': No such file"),
            (Access(ca=__file__), "schema_registry.ca = .*no certificate"),
            (Access(certificate="/absent.pem"), "schema_registry.certificate = '/absent.pem'.*No such file"),
        ],
    )
    def test_what_cannot_be_used_is_a_wrong_setting(self, access: Access, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            Registry("https://127.0.0.1:1", access=access)

    def test_an_encrypted_key_asks_nobody_for_its_password(self, authority: Authority) -> None:
        certificate, key = authority.issue("locked", password="open")  # noqa: S106 (of the test)
        access = Access(certificate=str(certificate), key=str(key))
        with pytest.raises(SettingsError, match=r"schema_registry\.key_password"):
            Registry("https://127.0.0.1:1", access=access)


@pytest.mark.parametrize("kind", ["basic", "token", "oauth", "certificate"])
def test_each_kind_of_credentials_goes_over_tls(authority: Authority, kind: str) -> None:
    tokens = TokenServer()
    tokens.clients["me"] = "secret"
    certificate, key = authority.issue("me", file=f"me-{kind}")
    given: dict[str, dict[str, str]] = {
        "basic": {"username": "me", "password": "secret"},
        "token": {"token": "letmein"},
        "oauth": {
            "oauth_token_url": f"{tokens.url}/token",
            "oauth_client_id": "me",
            "oauth_client_secret": "secret",
            "oauth_scope": "schemas",
        },
        "certificate": {"certificate": str(certificate), "key": str(key)},
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", file=f"server-{kind}"))
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED if kind == "certificate" else ssl.CERT_NONE
    try:
        with LoopbackRegistry(context) as registry:
            settings = {"url": registry.url, "ca": str(authority.ca), "auto_register": True, **given[kind]}
            codecs = open_codecs(SchemaRegistrySettings.model_validate(settings))
            codecs.open(result_topic="out", request_topic="in")
            assert codecs.read_request(*codecs.encode_request(DATUM))["id"] == "1"
            (said,) = set(registry.authorizations)
    finally:
        tokens.close()
    begin = {"basic": BASIC, "token": "Bearer letmein", "oauth": "Bearer ey", "certificate": ""}
    assert (said or "").startswith(begin[kind])
    assert (said is None) == (kind == "certificate")


class TestOAuth:
    @pytest.fixture
    def issuer(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Where tokens are issued, and what was asked there."""
        asked: list[dict[str, Any]] = []

        def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            asked.append({"authorization": handler.headers["Authorization"], **parse_qs(body.decode())})
            welcome = handler.headers["Authorization"] == "Basic bWUlM0F1czpzZWNyZXQlMkY="
            token = {"access_token": f"token-{len(asked)}", "token_type": "Bearer", "expires_in": 60}
            handler.send_response(200 if welcome else 401)
            handler.end_headers()
            handler.wfile.write(json.dumps(token if welcome else {"error": "invalid_client"}).encode())

        with answering(answer) as url:
            yield f"{url}/token", asked

    def test_a_token_is_fetched_once_and_sent(
        self, loopback_registry: LoopbackRegistry, issuer: tuple[str, list[dict[str, Any]]]
    ) -> None:
        number = register(loopback_registry, REQUEST_TEXT)
        settings = SchemaRegistrySettings.model_validate(
            {
                "url": loopback_registry.url,
                "auto_register": True,
                "oauth_token_url": issuer[0],
                "oauth_client_id": "me:us",
                "oauth_client_secret": "secret/",
                "oauth_scope": "schemas",
            }
        )
        codecs = open_codecs(settings)
        codecs.open(result_topic="out")
        codecs.read_request(b"\x00" + number.to_bytes(4, "big") + codecs_payload(), ())
        assert loopback_registry.authorizations[-2:] == ["Bearer token-1"] * 2
        (asked,) = issuer[1]
        assert (asked["grant_type"], asked["scope"]) == (["client_credentials"], ["schemas"])

    def test_it_is_renewed_in_time_and_when_the_registry_takes_it_no_more(
        self, loopback_registry: LoopbackRegistry, issuer: tuple[str, list[dict[str, Any]]]
    ) -> None:
        registry = Registry(loopback_registry.url, access=Access(oauth=OAuthClient(issuer[0], "me:us", "secret/")))
        tokens: Any = registry._client._rest_client.bearer_field_provider.custom_function
        now_s = 0.0
        tokens._clock = lambda: now_s
        for later_s in (0.0, 47.0, 2.0):  # of 60 seconds, four fifths
            now_s += later_s
            with pytest.raises(SettingsError, match="auto_register"):
                find_ours(registry)
        assert loopback_registry.authorizations == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]
        tokens.forget()
        with pytest.raises(SettingsError, match="auto_register"):
            find_ours(registry)
        assert loopback_registry.authorizations[-1] == "Bearer token-3"

    def test_wrong_credentials_are_a_wrong_setting_and_an_issuer_that_is_away_an_outage(
        self, loopback_registry: LoopbackRegistry, issuer: tuple[str, list[dict[str, Any]]]
    ) -> None:
        wrong = Access(oauth=OAuthClient(issuer[0], "me:us", "wrong-one"))
        with pytest.raises(SettingsError, match=r"answers 401 and gives no token; check .*OAuth") as refused:
            find_ours(Registry(loopback_registry.url, access=wrong))
        assert "wrong-one" not in str(refused.value)
        away = Access(oauth=OAuthClient("http://127.0.0.1:1/token", "me:us", "secret/"))
        with pytest.raises(RegistryAway):
            find_ours(Registry(loopback_registry.url, access=away))
        assert loopback_registry.requests == []


def codecs_payload() -> bytes:
    return open_codecs(SchemaRegistrySettings()).encode_request(DATUM)[0][10:]


def rule(kind: str, mode: RuleMode, *, disabled: bool = False) -> Rule:
    return Rule("mine", None, RuleKind.TRANSFORM, mode, kind, ["PII"], RuleParams({}), "true", None, None, disabled)


class TestRules:
    @pytest.mark.parametrize(
        ("rules", "said"),
        [
            (RuleSet(None, [rule("ENCRYPT", RuleMode.WRITEREAD)]), "ENCRYPT 'mine'"),
            (RuleSet(None, [rule("CEL", RuleMode.WRITE)]), "CEL 'mine'"),
            (RuleSet(None, None, [rule("ENCRYPT_PAYLOAD", RuleMode.WRITEREAD)]), "ENCRYPT_PAYLOAD 'mine'"),
            (RuleSet([rule("JSONATA", RuleMode.UPGRADE)], None), "JSONATA 'mine'"),
        ],
    )
    def test_a_schema_with_rules_is_refused(
        self, loopback_registry: LoopbackRegistry, rules: RuleSet, said: str
    ) -> None:
        number = register(loopback_registry, REQUEST_TEXT, rules)
        with pytest.raises(Rejection, match=f"schema id {number} is a schema with rules: {said}") as refused:
            read(Registry(loopback_registry.url), number)
        assert refused.value.reason is Reason.SCHEMA

    def test_one_whose_rules_are_switched_off_is_read(self, loopback_registry: LoopbackRegistry) -> None:
        number = register(loopback_registry, REQUEST_TEXT, RuleSet(None, [rule("CEL", RuleMode.WRITE, disabled=True)]))
        assert read(Registry(loopback_registry.url), number) == FINGERPRINT

    def test_rules_of_a_kind_that_nobody_knows_are_the_schemas_fault(self) -> None:
        def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
            handler.send_response(200)
            handler.end_headers()
            found = {"schema": REQUEST_TEXT, "ruleSet": {"domainRules": [{"name": "n", "kind": "ORACLE"}]}}
            handler.wfile.write(json.dumps(found).encode())

        with answering(answer) as url, pytest.raises(Rejection, match=r"rules that nobody knows.*ORACLE"):
            read(Registry(url), 1)
