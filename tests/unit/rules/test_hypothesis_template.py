from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.avro import json_request
from worker.avro.request import Defaults, Limits, request
from worker.errors import Reason, Rejection, SettingsError
from worker.label_sets import record
from worker.label_sets.record import RefusedError
from worker.messages import LongText, Pooling
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template, split
from worker.settings import load

REFUSED = (
    "",
    "about",
    "{} {}",
    "{}{}",
    "{0}",
    "{x}",
    "{0.__class__}",
    "{!r}",
    "{:>9}",
    "{{}}",
    "{{}} {}",
    "{{x}} {}",
    "} {",
    "{}}",
)


@given(st.text(alphabet="{}!:0a. ", max_size=12) | st.text())
@example("{}")
@example("{{}}")
@example("{{{}}}")
@example("}{}{")
def test_accepted_is_one_gap_and_no_other_brace(text: str) -> None:
    assert is_template(text) == any(
        text[i : i + 2] == "{}" and not set("{}") & set(text[:i] + text[i + 2 :]) for i in range(len(text))
    )


@given(*[st.text(st.characters(exclude_characters="{}"))] * 2, st.text(st.sampled_from("{}0.ab") | st.characters()))
@example("", "", "{}")
@example("This is ", ".", "{0.__class__}")
def test_a_label_goes_in_verbatim(before: str, after: str, label: str) -> None:
    template = f"{before}{{}}{after}"
    assert is_template(template)
    assert split(template) == (before, after)
    assert label.join(split(template)) == before + label + after


@pytest.mark.parametrize("template", REFUSED)
def test_settings_requests_and_label_sets_refuse_alike(template: str) -> None:
    required = {"XNLI_KAFKA__BOOTSTRAP_SERVERS": "host:9092", "XNLI_MODEL__NAME": "models/nli"}
    with pytest.raises(SettingsError) as setting:
        load(environ={**required, "XNLI_MODEL__HYPOTHESIS_TEMPLATE": template})
    assert str(setting.value) == f"model.hypothesis_template = {template!r}: {TEMPLATE_RULE}"

    datum = json_request.request({"id": "1", "text": "t", "labels": ["a"], "hypothesis_template": template})
    defaults = Defaults("{}", LongText.TRUNCATE, Pooling.MEAN, normalize=True)
    with pytest.raises(Rejection) as rejection:
        request(datum, defaults, Limits(100, 4, 100, 1000))
    assert rejection.value.reason is Reason.INVALID
    assert str(rejection.value) == f"hypothesis_template = {template!r}: {TEMPLATE_RULE}"

    for place, value in (("", template), (".de", {"de": template})):
        with pytest.raises(RefusedError) as refused:
            record.checked({"labels": ["a"], "hypothesis_template": value}, None)
        why = TEMPLATE_RULE if template else "is blank: nothing of it can be seen"
        assert str(refused.value) == f"hypothesis_template{place} = {template!r}: {why}"


@pytest.mark.parametrize("template", [template for template in REFUSED if set(template) & set("{}")])
def test_a_labels_own_wording_keeps_the_rule_where_it_has_a_brace(template: str) -> None:
    with pytest.raises(RefusedError, match=r"^labels\[0\]\.hypothesis = "):
        record.checked({"labels": [{"label": "a", "hypothesis": template}]}, None)
