from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import label_sets
from worker.avro import json_request
from worker.avro.request import Defaults, Limits, request
from worker.errors import Reason, Rejection, UnknownLabelSet
from worker.messages import LabelSetVersion, LongText, ModelIdentity, Pooling, Request, Task, Taxonomy
from worker.rules.calibration import Calibration, Calibrations, Curves, KnownLabel, Platt, Temperature

POLICY = {
    "version": "2026-11",
    "labels": [
        "praise",
        {
            "label": "abuse",
            "threshold": 0.9,
            "hypothesis": {"default": "This text attacks somebody.", "de": "Hier geht es um {}."},
            "children": ["insult", {"label": "threat", "threshold": 0.5}],
        },
    ],
    "hypothesis_template": {"default": "About {}.", "de": "Über {}.", "pt-br": "Sobre {}."},
    "multi_label": True,
    "top_k": 3,
    "threshold": 0.7,
    "beam": 2,
    "abstain_on_neutral": 0.8,
    "long_text": "WINDOW_MAX",
    "evidence": 2,
}
DEFAULTS = Defaults(
    "This example is {}.",
    LongText.TRUNCATE,
    Pooling.MEAN,
    normalize=True,
    label_sets=label_sets(moods=["glad", "sad"], policy=POLICY, many=[f"l{i}" for i in range(9)], long=["x" * 31]),
)
LIMITS = Limits(max_text_chars=100, max_labels=4, max_label_chars=30, max_message_bytes=1000)


def datum(**fields: Any) -> dict[str, Any]:
    return json_request.request({"id": "1", "text": "hello", "labels": ["a"], **fields})


NO_SETS = Defaults("This example is {}.", LongText.TRUNCATE, Pooling.MEAN, normalize=True)


def rejected(reason: Reason, *, _defaults: Defaults = DEFAULTS, **fields: Any) -> str:
    with pytest.raises(Rejection) as caught:
        request(datum(**fields), _defaults, LIMITS)
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
    assert got.label_set == LabelSetVersion("moods", "0/0")
    assert (got.taxonomy, got.thresholds, got.threshold) == (None, (), None)
    assert "one of the two" in rejected(Reason.INVALID, label_set="moods")
    assert "topics.label_sets" in rejected(Reason.INVALID, labels=[], label_set="moods", _defaults=NO_SETS)


def test_an_unknown_set_is_named_so_that_it_can_be_waited_for() -> None:
    with pytest.raises(UnknownLabelSet, match="label_set = 'mods': there is no set of this name") as caught:
        request(datum(labels=[], label_set="mods"), DEFAULTS, LIMITS)
    assert caught.value.label_set == "mods"
    assert "no set has such a name" in rejected(Reason.INVALID, labels=[], label_set="\u200b")


def test_a_set_has_limits_of_its_own_but_for_the_length_of_a_text() -> None:
    assert len(request(datum(labels=[], label_set="many"), DEFAULTS, LIMITS).labels) == 9 > LIMITS.max_labels
    said = rejected(Reason.TOO_LARGE, labels=[], label_set="long")
    assert "label_set 'long' has a label, hypothesis or template of 31 characters" in said


def of_policy(**fields: Any) -> Request:
    return request(datum(labels=[], label_set="policy", **fields), DEFAULTS, LIMITS)


def test_what_a_set_says_completes_a_request() -> None:
    got = of_policy()
    assert got.labels == ("praise", "abuse", "insult", "threat")
    assert got.taxonomy == Taxonomy((-1, -1, 1, 1), 2)
    assert got.thresholds == (0.7, 0.9, 0.7, 0.5)
    assert (got.threshold, got.top_k, got.multi_label, got.evidence) == (0.7, 3, True, 2)
    assert (got.abstain_on_neutral, got.long_text) == (0.8, LongText.WINDOW_MAX)
    assert got.label_set == LabelSetVersion("policy", "2026-11")
    assert got.hypotheses == ("About praise.", "This text attacks somebody.", "About insult.", "About threat.")


def test_the_request_goes_before_its_set() -> None:
    got = of_policy(threshold=0.1, top_k=1, abstain_on_neutral=0.2, long_text="TRUNCATE", evidence=1)
    assert (got.threshold, got.thresholds) == (0.1, ())
    assert (got.top_k, got.abstain_on_neutral, got.long_text, got.evidence) == (1, 0.2, LongText.TRUNCATE, 1)
    assert got.multi_label, "a plain boolean cannot say no: it can only ask for it too"
    assert of_policy(hypothesis_template="Is it {}?").hypotheses == (
        *("Is it praise?", "Is it abuse?", "Is it insult?", "Is it threat?"),
    )


@pytest.mark.parametrize(
    ("language", "worded"),
    [
        ("de", ("Über praise.", "Hier geht es um abuse.", "Über insult.", "Über threat.")),
        ("de-AT", ("Über praise.", "Hier geht es um abuse.", "Über insult.", "Über threat.")),
        ("PT_br", ("Sobre praise.", "This text attacks somebody.", "Sobre insult.", "Sobre threat.")),
        ("pt", ("About praise.", "This text attacks somebody.", "About insult.", "About threat.")),
    ],
)
def test_a_language_picks_the_wording_by_its_code_then_by_its_first_part(
    language: str, worded: tuple[str, ...]
) -> None:
    got = of_policy(language=language)
    assert got.hypotheses == worded
    assert (got.language, got.detected) == (language, None)


def test_a_language_is_detected_where_that_is_asked_for() -> None:
    told = {"hallo": "de"}
    defaults = replace(DEFAULTS, detect=told.get)
    asked = datum(labels=[], label_set="policy", language="auto")
    got = request(asked | {"text": "hallo"}, defaults, LIMITS)
    assert (got.language, got.detected, got.hypotheses[0]) == ("de", "de", "Über praise.")
    unclear = request(asked | {"text": "123"}, defaults, LIMITS)
    assert (unclear.language, unclear.detected, unclear.hypotheses[0]) == ("und", "und", "About praise.")
    named = request(datum(language="fr"), replace(defaults, language="auto"), LIMITS)
    assert (named.language, named.detected) == ("fr", None)
    silent = request(datum(text="hallo"), replace(defaults, language="auto"), LIMITS)
    assert (silent.language, silent.detected) == ("de", "de")
    assert "xnli-worker[language]" in rejected(Reason.INVALID, language="auto")


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


def calibration(name: str, *labels: str, temperature: float | None = None) -> Calibration:
    """Of labels in "About {}.", each with a threshold."""
    curve = None if temperature is not None else Platt(1.0, 0.0)
    known = tuple(KnownLabel(label, (f"About {label}.",), curve, 0.4) for label in labels)
    return Calibration(name, ModelIdentity("m", "1"), known, temperature)


def test_a_request_gets_the_workers_calibration_and_a_label_sets_request_the_one_that_it_names() -> None:
    own, policy = calibration("own", "a", "b", temperature=2.0), calibration("policy", "insult", "abuse", "spam")
    sets = label_sets(
        plain={"labels": ["a", "b"], "hypothesis_template": "About {}."},
        policy={"labels": ["insult", {"label": "abuse", "threshold": 0.9}], "hypothesis_template": "About {}.",
                "multi_label": True, "calibration": "policy"},
        other={"labels": ["a", "b"], "hypothesis_template": "About {}.", "calibration": "nobody's"},
    )  # fmt: skip
    defaults = replace(DEFAULTS, label_sets=sets, calibrations=Calibrations({"own": own, "policy": policy}, own))

    def asked(**fields: Any) -> Request:
        return request(datum(**({"labels": []} | fields)), defaults, LIMITS)

    assert asked(label_set="plain").calibrator == Temperature(2.0)
    assert asked(labels=["b", "a"], hypothesis_template="About {}.").calibrator == Temperature(2.0)
    assert asked(labels=["b", "a"]).calibrator is None  # another sentence
    assert asked(label_set="other").calibrator is None
    found = asked(label_set="policy")
    assert found.calibrator == Curves((Platt(1.0, 0.0), Platt(1.0, 0.0)))
    assert found.thresholds == (0.4, 0.9)
    assert asked(label_set="policy", threshold=0.1).thresholds == ()
    assert asked(label_set="policy", hypothesis_template="Of {}.").calibrator is None
    assert asked(task="ENTAIL", hypotheses=["About a.", "About b."]).calibrator is None
