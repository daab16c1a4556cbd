"""The shipped checkpoint learns four labels that it does not know, from eight examples each, and keeps the others."""

from __future__ import annotations

import json
import resource
import sys
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
@pytest.mark.parametrize("labels_in", ["en", None])
def test_unknown_labels_are_learnt_and_known_ones_kept(
    seed: int,
    labels_in: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XNLI_MODEL__DEVICE", "cpu")
    few = write(tmp_path / "few.jsonl", unknown_examples(8, seed=seed, evaluation=False))
    test = write(tmp_path / "test.jsonl", unknown_examples(24, seed=seed, evaluation=True))
    known = list(known_examples(20, seed=seed, evaluation=True, labels_in=labels_in))
    unseen = write(tmp_path / "unseen.jsonl", known)
    began_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    arguments = ["adapt", few, "--model", "demo", "--test", test, "--unseen", unseen, "--output", "learnt"]
    assert cli.main([*arguments, "--seed", str(seed)]) == 0
    taken_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began_s
    story = json.loads(capsys.readouterr().out.splitlines()[-1])
    new, kept = story["new_labels"], story["unseen_labels"]
    shown = [f"seed {seed}, labels in {labels_in or 'every language'}: {taken_s:.0f} s of CPU"]
    shown += [
        f"{name}, {measure}: {figures['before'][measure]:.1%} to {figures['after'][measure]:.1%}"
        for name, figures in (("learnt", new), ("kept", kept))
        for measure in ("macro_f1", "accuracy")
    ]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *shown, ""]))
    assert (story["examples"], new["examples"], kept["examples"]) == (32, 96, 900)
    assert new["after"]["macro_f1"] - new["before"]["macro_f1"] >= GAIN
    assert kept["before"]["accuracy"] - kept["after"]["accuracy"] <= LOSS
    if labels_in:  # otherwise there are 285 labels, of three examples each: F1 of so few is chance
        assert kept["before"]["macro_f1"] - kept["after"]["macro_f1"] <= LOSS
    assert taken_s < LIMIT_S
