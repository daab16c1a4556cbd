from __future__ import annotations

from typing import Any

import pytest

from worker.avro import json_request
from worker.avro.request import Defaults, Limits, request
from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Task

DEFAULTS = Defaults(
    "This example is {}.", LongText.TRUNCATE, Pooling.MEAN, normalize=True, label_sets={"moods": ("glad", "sad")}
)
LIMITS = Limits(max_text_chars=100, max_labels=4, max_label_chars=30, max_message_bytes=1000)


def datum(**fields: Any) -> dict[str, Any]:
    return json_request.request({"id": "1", "text": "hello", "labels": ["a"], **fields})


def rejected(reason: Reason, **fields: Any) -> str:
    with pytest.raises(Rejection) as caught:
        request(datum(**fields), DEFAULTS, LIMITS)
    assert caught.value.reason is reason
    assert caught.value.stage == "validate"
    return str(caught.value)


def test_defaults_are_filled_in() -> None:
    got = request(datum(labels=["a", "b", "a"]), DEFAULTS, LIMITS)
    assert got.task is Task.CLASSIFY
    assert got.labels == ("a", "b", "a")
    assert got.hypotheses == ("This example is a.", "This example is b.", "This example is a.")
    assert (got.long_text, got.pooling, got.normalize) == (LongText.TRUNCATE, Pooling.MEAN, True)
    assert (got.top_k, got.threshold, got.language, got.multi_label) == (None, None, None, False)


def test_what_the_request_says_wins() -> None:
    got = request(
        datum(hypothesis_template="É {}!", long_text="WINDOW_MEAN", pooling="CLS", normalize=False, top_k=9),
        DEFAULTS,
        LIMITS,
    )
    assert got.hypotheses == ("É a!",)
    assert (got.long_text, got.pooling, got.normalize, got.top_k) == (LongText.WINDOW_MEAN, Pooling.CLS, False, 9)


def test_a_label_set_is_looked_up() -> None:
    got = request(datum(labels=[], label_set="moods"), DEFAULTS, LIMITS)
    assert got.labels == ("glad", "sad")
    assert "registered are moods" in rejected(Reason.INVALID, labels=[], label_set="mods")
    assert "one of the two" in rejected(Reason.INVALID, label_set="moods")


def test_entail_takes_hypotheses_as_they_are() -> None:
    got = request(datum(task="ENTAIL", hypotheses=["{x} it {}", "b"]), DEFAULTS, LIMITS)
    assert (got.labels, got.hypotheses) == ((), ("{x} it {}", "b"))


def test_embed_needs_a_text_alone() -> None:
    got = request(datum(task="EMBED", labels=[], hypothesis_template="{0.__class__}"), DEFAULTS, LIMITS)
    assert (got.labels, got.hypotheses) == ((), ())


def test_a_label_is_text_and_never_a_format() -> None:
    got = request(datum(labels=["{0.__class__}", "{}"]), DEFAULTS, LIMITS)
    assert got.hypotheses == ("This example is {0.__class__}.", "This example is {}.")


@pytest.mark.parametrize(
    "template",
    ["", "about", "{} {}", "{0}", "{x}", "{x.__class__}", "{!r}", "{:>9}", "{{}}", "{{}} {}", "} {", "{}}"],
)
def test_a_template_has_one_bare_gap(template: str) -> None:
    assert "hypothesis_template" in rejected(Reason.INVALID, hypothesis_template=template)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id": ""}, "id = ''"),
        ({"text": ""}, "text = ''"),
        ({"text": " \n\u3000"}, "text = "),
        ({"text": "\u200b\ufeff\u00ad"}, "nothing of it can be seen"),
        ({"labels": []}, "labels = []"),
        ({"labels": ["a", " "]}, "labels[1] = ' '"),
        ({"labels": ["a", "\u3164"]}, "labels[1] = "),
        ({"task": "ENTAIL"}, "hypotheses = []"),
        ({"task": "ENTAIL", "hypotheses": [""]}, "hypotheses[0] = ''"),
        ({"task": "ENTAIL", "hypotheses": ["a", "\u2060\ufe0f"]}, "hypotheses[1] = "),
        ({"language": ""}, "language = ''"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"threshold": float("nan")}, "threshold = nan"),
        ({"threshold": 1.0000001}, "threshold = 1.0000001"),
        ({"threshold": float("-inf")}, "threshold = -inf"),
    ],
)
def test_the_impossible_is_invalid(fields: dict[str, Any], named: str) -> None:
    assert named in rejected(Reason.INVALID, **fields)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.0])
def test_the_ends_of_the_threshold_are_allowed(threshold: float) -> None:
    assert request(datum(threshold=threshold), DEFAULTS, LIMITS).threshold == threshold


@pytest.mark.parametrize(
    ("fits", "over", "limit"),
    [
        ({"text": "x" * 100}, {"text": "x" * 101}, "max_text_chars is 100"),
        ({"labels": ["x"] * 4}, {"labels": ["x"] * 5}, "max_labels is 4"),
        ({"labels": ["x" * 30]}, {"labels": ["x" * 31]}, "max_label_chars is 30"),
        (
            {"hypothesis_template": "{}" + "x" * 28},
            {"hypothesis_template": "{}" + "x" * 29},
            "max_label_chars is 30",
        ),
        (
            {"task": "ENTAIL", "hypotheses": ["x"] * 4},
            {"task": "ENTAIL", "hypotheses": ["x"] * 5},
            "max_labels is 4",
        ),
        (
            {"task": "ENTAIL", "hypotheses": ["x" * 30]},
            {"task": "ENTAIL", "hypotheses": ["x" * 31]},
            "max_label_chars is 30",
        ),
    ],
)
def test_limits(fits: dict[str, Any], over: dict[str, Any], limit: str) -> None:
    request(datum(**fits), DEFAULTS, LIMITS)
    assert limit in rejected(Reason.TOO_LARGE, **over)


def test_values_are_shown_shortened() -> None:
    message = rejected(Reason.INVALID, hypothesis_template="y" * 30, labels=["a"], text="x" * 100)
    assert len(message) < 300
    assert len(rejected(Reason.INVALID, language=" " * 10_000)) < 300
