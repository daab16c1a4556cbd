"""A directory is written whole or not at all, and what is in it loads as any checkpoint does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import families
from worker.errors import FatalError, SettingsError
from worker.inference import checkpoint_files
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.learn import checkpoint_directory


def loaded(directory: Path, **options: object) -> Checkpoint:
    return load(str(directory), device="cpu", precision="fp32", self_test="off", **options)  # type: ignore[arg-type]


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with checkpoint_directory.new_directory(output) as folder:
        (folder / "file").write_text("x")
        assert not output.exists()
        assert folder.name == "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (output / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_nothing_is_left_of_what_is_broken_off(tmp_path: Path, error: type[BaseException]) -> None:
    def broken_off() -> None:
        with checkpoint_directory.new_directory(tmp_path / "model") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(error):
        broken_off()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "model"
    match kind:
        case "file":
            output.touch()
        case "folder":
            output.mkdir()
        case _:
            output.symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(SettingsError, match=r"--output .*model: is there already"),
        checkpoint_directory.new_directory(output),
    ):
        pytest.fail("it began")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "model"
    with pytest.raises(FatalError, match="could not be written"), checkpoint_directory.new_directory(output):
        output.mkdir()
    assert list(output.iterdir()) == []
    assert list(tmp_path.iterdir()) == [output]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingsError, match=r"nothing can be written to .*absent"),
        checkpoint_directory.new_directory(tmp_path / "absent" / "model"),
    ):
        pytest.fail("it began")


@pytest.mark.parametrize("family", families.EVERY)
def test_what_is_written_is_the_checkpoint_again(tmp_path: Path, family: str) -> None:
    source = families.checkpoint(family, order=("neutral", "entailment", "contradiction"))
    checkpoint = loaded(source)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.add_(0.5)
    checkpoint_directory.write(checkpoint, source, tmp_path)
    again = loaded(tmp_path)
    weights, expected = again.model.state_dict(), checkpoint.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert again.order == checkpoint.order
    assert again.max_length == checkpoint.max_length
    assert again.identity.revision != checkpoint.identity.revision
    checkpoint_files.require_whole(tmp_path, "it")
    assert not list(tmp_path.glob("*.bin"))


def test_half_precision_stays_and_files_are_readable(tmp_path: Path) -> None:
    source = Path(shutil.copytree(families.checkpoint("bert"), tmp_path / "source"))
    halves = {name: weight.half() for name, weight in load_file(source / "model.safetensors").items()}
    save_file(halves, source / "model.safetensors", {"format": "pt"})
    output = tmp_path / "output"
    output.mkdir()
    checkpoint_directory.write(loaded(source), source, output)
    found = load_file(output / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.float16}
    assert all(torch.equal(found[name], halves[name]) for name in halves)
    modes = {path.stat().st_mode for path in output.iterdir()}
    assert len(modes) == 1


def test_classes_that_a_setting_named_are_named_in_what_is_written(tmp_path: Path) -> None:
    source = Path(shutil.copytree(families.checkpoint("bert"), tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config |= {
        "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        "label2id": {f"LABEL_{n}": n for n in range(3)},
    }
    (source / "config.json").write_text(json.dumps(config))
    output = tmp_path / "output"
    output.mkdir()
    checkpoint = loaded(source, labels=("contradiction", "entailment", "neutral"))
    checkpoint_directory.write(checkpoint, source, output)
    assert loaded(output).order == checkpoint.order
