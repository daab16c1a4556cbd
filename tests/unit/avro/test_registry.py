from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from tests.brokers.registry import LoopbackRegistry
from worker.avro import request, result
from worker.avro.registry import REQUEST, RESULT, Codecs, SubjectStrategy, schema_folder
from worker.errors import Reason, RegistryAway, Rejection, SettingsError

DATUM = result.request({"id": "1", "text": "hello", "labels": ["a"]})
RESULT_TEXT = (schema_folder() / RESULT).read_text("utf-8")
REQUEST_TEXT = (schema_folder() / REQUEST).read_text("utf-8")
RESULT_DATUM = json.loads((schema_folder() / "examples" / "result-embedding.json").read_text("utf-8"))


def never(_: float) -> None:
    pytest.fail("waited")


def register(registry: LoopbackRegistry, subject: str, text: str) -> int:
    with SchemaRegistryClient({"url": registry.url}) as client:
        return int(client.register_schema(subject, Schema(text, "AVRO")))


def with_id(number: int, payload: bytes = b"") -> bytes:
    return b"\x00" + struct.pack(">I", number) + payload


def bare(datum: dict[str, Any] = DATUM) -> bytes:
    """A request's payload without its framing."""
    return Codecs().encode_request(datum)[0][10:]


class TestWithoutRegistry:
    def test_single_object_encoding_there_and_back(self) -> None:
        codecs = Codecs()
        codecs.open(result_topic="out", request_topic="in")
        value, headers = codecs.encode_request(DATUM)
        assert value[:2] == b"\xc3\x01"
        assert value[2:10] == bytes.fromhex(request.schema(REQUEST_TEXT).fingerprint)
        assert headers == ()
        assert codecs.read_request(value, headers) == DATUM
        assert codecs.read_result(*codecs.encode_result(RESULT_DATUM)) == RESULT_DATUM

    def test_an_unknown_fingerprint_says_which_are_known(self) -> None:
        with pytest.raises(Rejection, match=r"xnli\.InferenceRequest.*xnli\.InferenceResult") as caught:
            Codecs().read_request(b"\xc3\x01" + bytes(8), ())
        assert caught.value.reason is Reason.SCHEMA

    def test_a_registrys_framing_says_what_to_set(self) -> None:
        with pytest.raises(Rejection, match=r"schema_registry\.url") as caught:
            Codecs().read_request(with_id(1), ())
        assert caught.value.reason is Reason.SCHEMA

    def test_a_result_is_no_request(self) -> None:
        codecs = Codecs()
        with pytest.raises(Rejection, match=r"xnli\.InferenceResult does not resolve") as caught:
            codecs.read_request(*codecs.encode_result(RESULT_DATUM))
        assert caught.value.reason is Reason.SCHEMA


class TestOpening:
    def test_a_schema_that_is_not_registered(self, loopback_registry: LoopbackRegistry) -> None:
        with pytest.raises(SettingsError, match=r"'out-value'.*schemas/inference-result\.avsc.*auto_register = true"):
            Codecs(loopback_registry.url, sleep=never).open(result_topic="out")
        assert "POST /subjects/out-value/versions" not in loopback_registry.requests

    @pytest.mark.parametrize(
        ("strategy", "subject"),
        [
            ("topic_name", "out-value"),
            ("record_name", "xnli.InferenceResult"),
            ("topic_record_name", "out-xnli.InferenceResult"),
        ],
    )
    def test_subjects(self, loopback_registry: LoopbackRegistry, strategy: SubjectStrategy, subject: str) -> None:
        register(loopback_registry, "another", REQUEST_TEXT)
        number = register(loopback_registry, subject, RESULT_TEXT)
        codecs = Codecs(loopback_registry.url, subject_strategy=strategy, sleep=never)
        codecs.open(result_topic="out")
        value, headers = codecs.encode_result(RESULT_DATUM)
        assert (value[:5], headers) == (with_id(number), ())
        assert codecs.read_result(value, headers) == RESULT_DATUM

    def test_registering(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url, auto_register=True, sleep=never)
        codecs.open(result_topic="out", request_topic="in")
        assert codecs.read_request(*codecs.encode_request(DATUM)) == DATUM
        assert codecs.read_result(*codecs.encode_result(RESULT_DATUM)) == RESULT_DATUM

    def test_guids(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url, auto_register=True, framing="guid", sleep=never)
        codecs.open(request_topic="in")
        value, headers = codecs.encode_request(DATUM)
        assert value == bare()
        ((name, mark),) = headers
        assert name == "__value_schema_id"
        assert mark is not None
        assert mark[0] == 1
        asked = f"GET /schemas/guids/{UUID(bytes=mark[1:])}"
        assert codecs.read_request(value, headers) == DATUM
        assert codecs.read_request(value, headers) == DATUM
        assert Codecs(loopback_registry.url).read_request(value, headers) == DATUM
        assert loopback_registry.requests.count(asked) <= 2

    def test_an_outage_is_waited_for(self, loopback_registry: LoopbackRegistry) -> None:
        register(loopback_registry, "out-value", RESULT_TEXT)
        loopback_registry.stop()
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                loopback_registry.start()

        codecs = Codecs(loopback_registry.url, sleep=sleep)
        codecs.open(result_topic="out")
        assert len(waits) == 3
        codecs.encode_result(RESULT_DATUM)

    def test_an_outage_is_not_waited_for_forever(self, loopback_registry: LoopbackRegistry) -> None:
        loopback_registry.available = False
        waits: list[float] = []
        with pytest.raises(RegistryAway, match=f"{loopback_registry.url}.*switched off by the test"):
            Codecs(loopback_registry.url, sleep=waits.append).open(result_topic="out", attempts=4)
        assert len(waits) == 3

    def test_a_stop_ends_the_wait(self, loopback_registry: LoopbackRegistry) -> None:
        class Stopped(Exception):  # noqa: N818 (what happened)
            pass

        def sleep(_: float) -> None:
            raise Stopped

        loopback_registry.available = False
        with pytest.raises(Stopped):
            Codecs(loopback_registry.url, sleep=sleep).open(result_topic="out")

    @pytest.mark.parametrize("url", ["", "localhost:8081", "ftp://registry", "http://", "http://ok:1,nonsense"])
    def test_addresses_that_are_none(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"schema_registry\.url = "):
            Codecs(url)

    def test_credentials_in_the_address_are_refused_and_not_repeated(self) -> None:
        with pytest.raises(SettingsError, match=r"schema_registry\.username") as caught:
            Codecs("http://me:secret@registry:8081")
        assert "secret" not in str(caught.value)


class TestReading:
    def test_a_schema_is_asked_for_once(self, loopback_registry: LoopbackRegistry) -> None:
        number = register(loopback_registry, "in-value", REQUEST_TEXT)
        codecs = Codecs(loopback_registry.url)
        for _ in range(3):
            assert codecs.read_request(with_id(number, bare()), ()) == DATUM
        assert loopback_registry.requests.count(f"GET /schemas/ids/{number}") == 1

    def test_shipped_schemas_need_no_registry_even_where_one_is_set(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url)
        assert codecs.read_request(*Codecs().encode_request(DATUM)) == DATUM
        assert loopback_registry.requests == []

    def test_an_older_writer_resolves(self, loopback_registry: LoopbackRegistry) -> None:
        older = json.loads(REQUEST_TEXT)
        older["fields"] = older["fields"][:2]
        number = register(loopback_registry, "in-value", json.dumps(older))
        read = Codecs(loopback_registry.url).read_request(with_id(number, b"\x021\x0ahello"), ())
        assert read == DATUM | {"labels": []}

    def test_an_unknown_id_is_believed_for_a_while(self, loopback_registry: LoopbackRegistry) -> None:
        now = 0.0
        codecs = Codecs(loopback_registry.url, clock=lambda: now)
        for _ in range(3):
            with pytest.raises(Rejection, match="no schema id 1 ") as caught:
                codecs.read_request(with_id(1, bare()), ())
            assert caught.value.reason is Reason.SCHEMA
        assert len(loopback_registry.requests) == 1
        assert register(loopback_registry, "in-value", REQUEST_TEXT) == 1
        now = 10.0
        assert codecs.read_request(with_id(1, bare()), ()) == DATUM

    def test_what_is_believed_does_not_grow_without_bound(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url)
        codecs._unknown = {(request.Framing.CONFLUENT_ID, str(n)): (1e12, "no") for n in range(512)}
        with pytest.raises(Rejection):
            codecs.read_request(with_id(600), ())
        assert len(codecs._unknown) == 1

    def test_an_outage_condemns_nobody_and_is_not_remembered(self, loopback_registry: LoopbackRegistry) -> None:
        number = register(loopback_registry, "in-value", REQUEST_TEXT)
        codecs = Codecs(loopback_registry.url, sleep=never)
        value = with_id(number, bare())
        loopback_registry.available = False
        with pytest.raises(RegistryAway, match="503"):
            codecs.read_request(value, ())
        loopback_registry.stop()
        with pytest.raises(RegistryAway, match=loopback_registry.url):
            codecs.read_request(value, ())
        loopback_registry.start()
        loopback_registry.available = True
        assert codecs.read_request(value, ()) == DATUM
        loopback_registry.available = False
        assert codecs.read_request(value, ()) == DATUM

    def test_a_wrong_path_condemns_nobody(self, loopback_registry: LoopbackRegistry) -> None:
        with pytest.raises(RegistryAway, match="404"):
            Codecs(f"{loopback_registry.url}/nowhere").read_request(with_id(1), ())

    def test_a_registry_that_never_answers_is_away(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            codecs = Codecs(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1, sleep=never)
            with pytest.raises(RegistryAway, match="Timeout"):
                codecs.read_request(with_id(1), ())

    @pytest.mark.parametrize(
        "text", ['{"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]}', '"nul"']
    )
    def test_a_schema_that_cannot_be_used(self, loopback_registry: LoopbackRegistry, text: str) -> None:
        number = register(loopback_registry, "in-value", text)
        with pytest.raises(Rejection, match=f"schema id {number}: ") as caught:
            Codecs(loopback_registry.url).read_request(with_id(number), ())
        assert caught.value.reason is Reason.SCHEMA


Access = tuple[str | None, str | None, str | None]  # user name, password, token


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

    @pytest.mark.parametrize("access", [("me", "secret", None), (None, None, "letmein")])
    def test_with_credentials(self, guarded: tuple[str, list[str | None]], access: Access) -> None:
        codecs = Codecs(guarded[0], username=access[0], password=access[1], token=access[2], sleep=never)
        codecs.open(result_topic="out")
        assert codecs.encode_result(RESULT_DATUM)[0][:5] == with_id(5)

    @pytest.mark.parametrize("access", [(None, None, None), ("me", "wrong", None), (None, None, "sesame")])
    def test_without(self, guarded: tuple[str, list[str | None]], access: Access) -> None:
        with pytest.raises(SettingsError, match=r"refuses.*schema_registry\.username") as caught:
            Codecs(guarded[0], username=access[0], password=access[1], token=access[2], sleep=never).open(
                result_topic="out"
            )
        assert "wrong" not in str(caught.value)
        assert "sesame" not in str(caught.value)

    def test_a_registry_without_guids(self, guarded: tuple[str, list[str | None]]) -> None:
        with pytest.raises(SettingsError, match="framing = 'prefix'"):
            Codecs(
                guarded[0],
                username="me",
                password="secret",  # noqa: S106 (of the server above)
                framing="guid",
                sleep=never,
            ).open(result_topic="out")
