"""Who may ask for inference and see the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.unit.http.served import Served, served
from worker import settings
from worker.errors import SettingsError

TOKEN = "a-token-of-enough-characters"  # noqa: S105 (of this test)
ANOTHER = "another-token-of-enough-characters"
BODY = {"text": "a"}
EVERYWHERE = "0.0.0.0"  # noqa: S104 (what is tested is that strangers are kept out)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with served(tokens=f"{TOKEN},{ANOTHER}") as found:
        yield found


@pytest.mark.parametrize("token", [TOKEN, ANOTHER])
def test_each_token_opens(guarded: Served, token: str) -> None:
    basic = base64.b64encode(f"anybody:{token}".encode()).decode()
    for said in (f"Bearer {token}", f"bearer {token}", f"Basic {basic}"):
        assert guarded.ask("/v1/embed", BODY, headers={"Authorization": said}).status == 200
        assert guarded.ask("/", headers={"Authorization": said}).status == 200


@pytest.mark.parametrize(
    "said", ["", "Bearer", f"Bearer {TOKEN}x", TOKEN, "Basic x", "Basic Og==", f"Digest {TOKEN}", "Bearer ü"]
)
def test_anything_else_does_not(guarded: Served, said: str) -> None:
    headers = {"Authorization": said.encode().decode("latin-1")} if said else {}
    for path in ("/v1/embed", "/", "/embed", "/v1/embeddings", "/models/scripted"):
        answer = guarded.ask(path, BODY, headers=headers)
        assert answer.status == 401, path
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        assert TOKEN.encode() not in answer.body
    for path in ("/", "/v1/models"):
        assert guarded.ask(path, headers=headers).status == 401


def test_probes_need_none(guarded: Served) -> None:
    for path in ("/healthz", "/metrics", "/readyz", "/openapi.json"):
        assert guarded.ask(path).status in {200, 503}


def test_a_body_is_not_read_before_the_token_is_seen(guarded: Served) -> None:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    with guarded.connect(head) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def _load(**variables: str) -> settings.Settings:
    given = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "none:9092", "XNLI_MODEL__NAME": "demo"}
    return settings.load(None, given | {f"XNLI_HTTP__{name.upper()}": value for name, value in variables.items()})


def test_off_loopback_inference_needs_a_token_or_that_somebody_says_so() -> None:
    with pytest.raises(SettingsError, match=r"http: http\.inference with http\.host = '0\.0\.0\.0': .*http\.insecure"):
        _load(host=EVERYWHERE, inference="true")
    for said in (
        {"tokens": TOKEN},
        {"insecure": "true"},
        {"host": "127.0.0.2"},
        {"host": "localhost"},
        {"host": "::1"},
    ):
        assert _load(**({"host": EVERYWHERE, "inference": "true"} | said)).http.is_guarded
    assert not _load(host=EVERYWHERE).http.is_guarded  # as ever: there are probes to answer


def test_off_loopback_without_a_token_there_is_no_page_but_probes_are_answered() -> None:
    with served(host=EVERYWHERE, inference="false") as found:
        answer = found.ask("/")
        assert answer.status == 403
        assert "http.tokens" in answer.json["detail"]
        assert found.ask("/metrics").status == 200


@pytest.mark.parametrize("token", ["short", "with a blank in the middle", "ümlaut-of-enough-characters"])
def test_what_is_no_bearer_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(SettingsError, match=r"http\.tokens \(not shown\): entry 1 is no bearer token") as refused:
        _load(tokens=token)
    assert token not in str(refused.value)
