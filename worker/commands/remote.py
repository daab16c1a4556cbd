"""A running worker that is asked over HTTP, in place of a model of one's own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from pydantic import SecretStr

from worker.errors import Reason, Rejection, SettingsError
from worker.messages import Classification, Encoded, LabelScore, ModelIdentity
from worker.rules import addresses

_TIMEOUT_S: Final = 120.0
_MOST_BYTES: Final = 64 << 20


class RemoteWorker:
    """Asks one worker.

    Args:
        url: Its address, as in http://127.0.0.1:9400.
        tokens: Of ``http.tokens``, the first of which is sent.

    Raises:
        SettingsError: the address is none.
    """

    def __init__(self, url: str, tokens: Sequence[SecretStr]) -> None:
        if problem := addresses.web_problem(url, "set http.tokens"):
            raise SettingsError(f"--url: {problem}")
        self._url = f"{url.rstrip('/')}/v1/classify"
        self._headers = {"Content-Type": "application/json"}
        if tokens:
            self._headers["Authorization"] = f"Bearer {tokens[0].get_secret_value()}"

    def classify(self, fields: dict[str, Any]) -> tuple[Encoded, Classification, ModelIdentity]:
        """What the worker answers to a request with these fields.

        Raises:
            Rejection: the request is at fault.
            SettingsError: nobody answers there, or not as a worker does.
        """
        body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
        # (The address is one of the web's: `addresses.web_problem` has looked.)
        asked = urllib.request.Request(self._url, body, self._headers)  # noqa: S310 (see above)
        try:
            with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (see above)
                found = json.loads(answer.read(_MOST_BYTES))
            return _result(found)
        except urllib.error.HTTPError as error:
            detail = _detail(error)
            if error.code in {413, 422}:
                raise Rejection(Reason.INVALID, "remote", detail) from None
            raise SettingsError(f"{self._url} answers {error.code}: {detail}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self._url}: no worker answers there ({error}); is one running with http.inference = true, or as "
                "xnli-worker serve?"
            ) from None


def _result(found: Any) -> tuple[Encoded, Classification, ModelIdentity]:
    outcome = found["outcome"]
    labels = tuple(
        LabelScore(
            *(one["label"], one["score"], one["entailment"], one["neutral"], one["contradiction"]),
            calibrated=one.get("calibrated"),
        )
        for one in outcome["labels"]
    )
    encoded = Encoded((), found["windows"], found["truncated"], 0)
    model = ModelIdentity(found["model"]["name"], found["model"]["revision"])
    return encoded, Classification(labels, outcome["multi_label"], outcome["abstained"]), model


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_MOST_BYTES))["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)
