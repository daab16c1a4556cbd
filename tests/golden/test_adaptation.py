"""The shipped checkpoint learns four labels that it does not know, from eight examples each, and keeps the others."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.unknown import known_examples, unknown_examples
from worker import cli

GAIN = 0.25
LOSS = 0.02
LIMIT_S = 2 * 600  # ten minutes of two cores, in processor time: other work on the machine does not count


def write(file: Path, examples: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(one) + "\n" for one in examples))
    return str(file)


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unknown_labels_are_learnt_and_known_ones_kept(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    few = write(tmp_path / "few.jsonl", unknown_examples(8, seed=seed, evaluation=False))
    test = write(tmp_path / "test.jsonl", unknown_examples(24, seed=seed, evaluation=True))
    unseen = write(tmp_path / "unseen.jsonl", list(known_examples(40, seed=seed, evaluation=True)))
    began_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    arguments = ["adapt", few, "--model", "demo", "--test", test, "--unseen", unseen, "--output", "learnt"]
    assert cli.main([*arguments, "--seed", str(seed)]) == 0
    taken_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began_s
    story = json.loads(capsys.readouterr().out.splitlines()[-1])
    new, known = story["new_labels"], story["unseen_labels"]
    assert (story["examples"], new["examples"], known["examples"]) == (32, 96, 1800)
    assert new["after"]["macro_f1"] - new["before"]["macro_f1"] >= GAIN
    assert known["before"]["macro_f1"] - known["after"]["macro_f1"] <= LOSS
    assert known["before"]["accuracy"] - known["after"]["accuracy"] <= LOSS
    assert taken_s < LIMIT_S
