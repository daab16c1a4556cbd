from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from tests.brokers.registry import LoopbackRegistry
from worker.avro.codec import REQUEST, RESULT, Codecs, schema_folder
from worker.avro.framing import Framing
from worker.avro.registry import Registry
from worker.avro.registry_access import Access
from worker.avro.schema_walk import schema
from worker.errors import Reason, RegistryAway, Rejection, SettingsError

RESULT_TEXT = (schema_folder() / RESULT).read_text("utf-8")
REQUEST_TEXT = (schema_folder() / REQUEST).read_text("utf-8")
FINGERPRINT = schema(REQUEST_TEXT).fingerprint


def register(registry: LoopbackRegistry, subject: str, text: str) -> int:
    with SchemaRegistryClient({"url": registry.url}) as client:
        return int(client.register_schema(subject, Schema(text, "AVRO")))


def read(registry: Registry, number: int) -> str:
    """The fingerprint of the schema with this id."""
    return registry.schema(Framing.CONFLUENT_ID, str(number)).fingerprint


class TestAddress:
    @pytest.mark.parametrize("url", ["", "localhost:8081", "ftp://registry", "http://", "http://ok:1,nonsense"])
    def test_addresses_that_are_none(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"schema_registry\.url = .*write http://host:port"):
            Registry(url)

    def test_credentials_in_the_address_are_refused_and_not_repeated(self) -> None:
        with pytest.raises(SettingsError, match=r"schema_registry\.username") as caught:
            Registry("http://me:secret@registry:8081")
        assert "secret" not in str(caught.value)


class TestOurs:
    def test_a_schema_that_is_not_registered(self, loopback_registry: LoopbackRegistry) -> None:
        with pytest.raises(SettingsError, match=r"'out-value'.*schemas/inference-result\.avsc.*auto_register = true"):
            Registry(loopback_registry.url).registered("out-value", RESULT, RESULT_TEXT, register=False)
        assert "POST /subjects/out-value/versions" not in loopback_registry.requests

    def test_registering(self, loopback_registry: LoopbackRegistry) -> None:
        registry = Registry(loopback_registry.url)
        new = registry.registered("out-value", RESULT, RESULT_TEXT, register=True)
        found = registry.registered("out-value", RESULT, RESULT_TEXT, register=False)
        assert new.schema_id is not None
        assert (new.schema_id, new.guid) == (found.schema_id, found.guid)

    def test_an_outage_is_not_the_settings_fault(self, loopback_registry: LoopbackRegistry) -> None:
        loopback_registry.available = False
        with pytest.raises(RegistryAway, match=f"{loopback_registry.url}.*switched off by the test"):
            Registry(loopback_registry.url).registered("out-value", RESULT, RESULT_TEXT, register=False)


class TestTheirs:
    def test_a_schema_is_asked_for_once(self, loopback_registry: LoopbackRegistry) -> None:
        number = register(loopback_registry, "in-value", REQUEST_TEXT)
        registry = Registry(loopback_registry.url)
        for _ in range(3):
            assert read(registry, number) == FINGERPRINT
        assert loopback_registry.requests.count(f"GET /schemas/ids/{number}") == 1

    def test_an_unknown_id_is_believed_for_a_while(self, loopback_registry: LoopbackRegistry) -> None:
        now = 0.0
        registry = Registry(loopback_registry.url, clock=lambda: now)
        for _ in range(3):
            with pytest.raises(Rejection, match="no schema id 1 ") as caught:
                read(registry, 1)
            assert caught.value.reason is Reason.SCHEMA
        assert len(loopback_registry.requests) == 1
        assert register(loopback_registry, "in-value", REQUEST_TEXT) == 1
        now = 10.0
        assert read(registry, 1) == FINGERPRINT

    def test_what_is_believed_does_not_grow_without_bound(self, loopback_registry: LoopbackRegistry) -> None:
        registry = Registry(loopback_registry.url)
        registry._refused = {(Framing.CONFLUENT_ID, str(n)): (1e12, "no") for n in range(512)}
        with pytest.raises(Rejection):
            read(registry, 600)
        assert len(registry._refused) == 1

    def test_an_outage_condemns_nobody_and_is_not_remembered(self, loopback_registry: LoopbackRegistry) -> None:
        number = register(loopback_registry, "in-value", REQUEST_TEXT)
        registry = Registry(loopback_registry.url)
        loopback_registry.available = False
        with pytest.raises(RegistryAway, match="503"):
            read(registry, number)
        loopback_registry.stop()
        with pytest.raises(RegistryAway, match=loopback_registry.url):
            read(registry, number)
        loopback_registry.start()
        loopback_registry.available = True
        assert read(registry, number) == FINGERPRINT
        loopback_registry.available = False
        assert read(registry, number) == FINGERPRINT

    def test_a_wrong_path_condemns_nobody(self, loopback_registry: LoopbackRegistry) -> None:
        with pytest.raises(RegistryAway, match="404"):
            read(Registry(f"{loopback_registry.url}/nowhere"), 1)

    def test_a_registry_that_never_answers_is_away(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1)
            with pytest.raises(RegistryAway, match="Timeout"):
                read(registry, 1)

    @pytest.mark.parametrize(
        "text", ['{"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]}', '"nul"']
    )
    def test_a_schema_that_cannot_be_used(self, loopback_registry: LoopbackRegistry, text: str) -> None:
        number = register(loopback_registry, "in-value", text)
        with pytest.raises(Rejection, match=f"schema id {number}: ") as caught:
            read(Registry(loopback_registry.url), number)
        assert caught.value.reason is Reason.SCHEMA


class TestAccess:
    @pytest.fixture
    def guarded(self) -> Iterator[tuple[str, list[str | None]]]:
        """A registry that lets in who says ``Basic bWU6c2VjcmV0`` or ``Bearer letmein``, and what was said to it."""
        said: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                said.append(self.headers["Authorization"])
                welcome = said[-1] in {"Basic bWU6c2VjcmV0", "Bearer letmein"}
                answer = {"id": 5, "version": 1, "subject": "s"} if welcome else {"error_code": 401, "message": "who?"}
                self.send_response(200 if welcome else 401)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", said
            server.shutdown()

    @pytest.mark.parametrize("access", [Access("me", "secret"), Access(token="letmein")])  # noqa: S106 (of the server)
    def test_with_credentials(self, guarded: tuple[str, list[str | None]], access: Access) -> None:
        registry = Registry(guarded[0], access=access)
        assert registry.registered("s", RESULT, RESULT_TEXT, register=False).schema_id == 5

    @pytest.mark.parametrize("access", [Access(), Access("me", "wrong"), Access(token="sesame")])  # noqa: S106
    def test_without(self, guarded: tuple[str, list[str | None]], access: Access) -> None:
        with pytest.raises(SettingsError, match=r"refuses.*schema_registry\.username") as caught:
            Registry(guarded[0], access=access).registered("s", RESULT, RESULT_TEXT, register=False)
        assert "wrong" not in str(caught.value)
        assert "sesame" not in str(caught.value)

    def test_a_registry_without_guids(self, guarded: tuple[str, list[str | None]]) -> None:
        with pytest.raises(SettingsError, match="framing = 'prefix'"):
            Codecs(guarded[0], access=Access("me", "secret"), framing="guid").open(result_topic="out")
