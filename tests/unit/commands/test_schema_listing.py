from __future__ import annotations

import json

import fastavro
import pytest

from worker import cli


def test_schemas_are_shown_with_the_fingerprint_that_values_begin_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schemas", "show"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [found["name"] for found in shown] == ["xnli.InferenceRequest", "xnli.InferenceResult"]
    for found in shown:
        canonical = fastavro.schema.to_parsing_canonical_form(fastavro.parse_schema(found["schema"]))
        assert found["fingerprint"] == fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
