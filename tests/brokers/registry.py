"""Schema registries for the tests, both speaking the Confluent REST API at ``url``.

``Apicurio`` is a real registry; it knows nothing of GUIDs and cannot be made to fail on demand. ``LoopbackRegistry`` is
ours and small; it does both. What concerns neither GUIDs nor outages is tested on the real one.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.brokers import java
from tests.brokers.ports import free_ports
from tests.brokers.process import Process


class RegistryFailed(Exception):  # noqa: N818 (what happened, as the field says it)
    """The registry did not start. The message ends with the tail of its log."""


class Apicurio:
    """Apicurio Registry with its data in memory, on a loopback port it picks itself."""

    def __init__(self) -> None:
        self._port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            tests.brokers.java.Unavailable: Java or Maven is missing.
            RegistryFailed: it ended, or did not answer within a minute. The log stays.
        """
        command = java.java().command
        (jar,) = java.folder("registry").glob("*-runner.jar")
        self.directory = Path(tempfile.mkdtemp(prefix="xnli-registry-"))
        self._process = Process(
            [
                command,
                "-Xmx384m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Dquarkus.http.host=127.0.0.1",
                f"-Dquarkus.http.port={self._port}",
                "-jar",
                jar,
            ],
            log=self.directory / "server.log",
            directory=self.directory,
        )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._process.kill()
            raise

    def stop(self) -> None:
        """End it; what was registered is gone."""
        if self._process is not None:
            self._process.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _wait_ready(self, process: Process) -> None:
        deadline = time.monotonic() + 60
        while process.exit_code is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/subjects", timeout=5):  # noqa: S310 (our own http address)
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise RegistryFailed(f"Apicurio Registry did not start ({process.log}):\n{process.tail()}")


@dataclass(frozen=True, slots=True)
class _Version:
    subject: str
    version: int
    id: int
    guid: str
    schema: str
    rule_set: str = ""  # as JSON

    def as_json(self) -> dict[str, Any]:
        return {
            **self.rules(),
            "subject": self.subject,
            "version": self.version,
            "id": self.id,
            "guid": self.guid,
            "schema": self.schema,
            "schemaType": "AVRO",
            "references": [],
        }

    def rules(self) -> dict[str, Any]:
        return {"ruleSet": json.loads(self.rule_set)} if self.rule_set else {}


class _Refusal(Exception):  # noqa: N818 (an answer, not a failure)
    """An error in the form of the Confluent API: an HTTP status and a code of five digits."""

    def __init__(self, status: HTTPStatus, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def _not_found(code: int, message: str) -> _Refusal:
    return _Refusal(HTTPStatus.NOT_FOUND, code, message)


class LoopbackRegistry:
    """The part of the Confluent API that a client of Avro schemas uses, GUIDs included, with outages on demand.

    Equal schemas (text and rules) share one id and one GUID across subjects, as in the original. Compatibility is not
    checked, and the configuration says so: NONE. ``requests`` lists what was asked ("GET /schemas/ids/1"), for tests of
    caching, and ``authorizations`` how each of them was authorized. With ``tls`` it speaks HTTPS.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{free_ports(1)[0]}"
        self.authorizations: list[str | None] = []
        self._tls = tls
        self.available = True  # False: every request is answered 503
        self.requests: list[str] = []
        self._lock = Lock()
        self._ids: dict[tuple[str, str], int] = {}  # by schema text and rules
        self._subjects: dict[str, list[_Version]] = {}
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, on the same port each time. What was registered before a stop is still known."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            # HTTP/1.0, the default here, ends each connection: after stop() no kept-alive one is still being answered.
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                registry.authorizations.append(self.headers.get("Authorization"))
                status, answer = registry.answer(self.command, self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing: ``requests`` is the log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", urlsplit(self.url).port or 0), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port: connections are refused until the next start."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, method: str, target: str, body: bytes) -> tuple[HTTPStatus, Any]:
        """The answer to one request."""
        path = urlsplit(target).path
        with self._lock:
            self.requests.append(f"{method} {path}")
            if not self.available:
                return HTTPStatus.SERVICE_UNAVAILABLE, {"error_code": 50301, "message": "switched off by the test"}
            try:
                return HTTPStatus.OK, self._route(method, [unquote(part) for part in path.strip("/").split("/")], body)
            except _Refusal as refusal:
                return refusal.status, {"error_code": refusal.code, "message": str(refusal)}

    def _route(self, method: str, path: list[str], body: bytes) -> Any:  # noqa: C901 (a table of routes)
        match method, path:
            case "GET", ["subjects"]:
                return sorted(self._subjects)
            case "POST", ["subjects", subject, "versions"]:
                return self._register(subject, *_schema_of(body)).as_json()
            case "POST", ["subjects", subject]:
                return self._lookup(subject, _schema_of(body)[0]).as_json()
            case "GET", ["subjects", subject, "versions"]:
                return [version.version for version in self._versions(subject)]
            case "GET", ["subjects", subject, "versions", "latest"]:
                return self._versions(subject)[-1].as_json()
            case "GET", ["subjects", subject, "versions", number] if re.fullmatch(r"[1-9]\d{0,8}", number):
                versions = self._versions(subject)
                if int(number) > len(versions):
                    raise _not_found(40402, f"Version {number} not found.")
                return versions[int(number) - 1].as_json()
            case "GET", ["schemas", "ids", number]:
                return self._by_identity(lambda version: str(version.id) == number, number)
            case "GET", ["schemas", "guids", guid]:
                return self._by_identity(lambda version: version.guid == guid, guid)
            case "GET", ["schemas", "types"]:
                return ["AVRO"]
            case "GET", ["config"] | ["config", _]:
                return {"compatibilityLevel": "NONE"}
            case _:
                raise _not_found(404, f"{method} /{'/'.join(path)} is not served here")

    def _versions(self, subject: str) -> list[_Version]:
        if subject not in self._subjects:
            raise _not_found(40401, f"Subject '{subject}' not found.")
        return self._subjects[subject]

    def _lookup(self, subject: str, schema: str) -> _Version:
        for version in self._versions(subject):
            if version.schema == schema:
                return version
        raise _not_found(40403, "Schema not found")

    def _register(self, subject: str, schema: str, rule_set: str) -> _Version:
        versions = self._subjects.setdefault(subject, [])
        for version in versions:
            if (version.schema, version.rule_set) == (schema, rule_set):
                return version
        number = self._ids.setdefault((schema, rule_set), len(self._ids) + 1)
        guid = str(uuid.uuid5(uuid.NAMESPACE_OID, schema + rule_set))  # a function of the schema, as in the original
        versions.append(_Version(subject, len(versions) + 1, number, guid, schema, rule_set))
        return versions[-1]

    def _by_identity(self, is_it: Callable[[_Version], bool], asked: str) -> dict[str, Any]:
        for versions in self._subjects.values():
            for version in versions:
                if is_it(version):
                    return {"schema": version.schema, "schemaType": "AVRO", "guid": version.guid, **version.rules()}
        raise _not_found(40403, f"Schema {asked} not found")


def _schema_of(body: bytes) -> tuple[str, str]:
    """The text of a schema, and its rules as JSON."""
    try:
        given = json.loads(body)
        schema, rules = given["schema"], given.get("ruleSet")
        json.loads(schema)
    except (ValueError, KeyError, TypeError) as error:
        message = f"Invalid schema: {error}"
        raise _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, 42201, message) from None
    return str(schema), json.dumps(rules) if rules else ""
