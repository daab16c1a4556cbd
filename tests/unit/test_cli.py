"""The command line from outside: what it prints, how it exits, and that it does not load what it does not need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker import __version__, cli
from worker.errors import CheckpointError, Fenced, RegistryAway, SettingsError

ROOT = Path(__file__).parents[2]
COMMANDS = ("run", "demo", "send", "tail", "check", "dead-letters", "bench")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with our variables replaced."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XNLI_")}
    return {**kept, **variables}


def xnli_worker(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    shown = xnli_worker("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)
    assert "0 done or drained, 1 failed while running, 2 wrong usage or" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"xnli-worker {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xnli-worker {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["run", "--unknown"],
        ["tail", "--count", "0"],
        ["tail", "--count", "x"],
        ["send", "a", "b"],
        ["bench", "--shape", "huge"],
        ["bench", "--shape", "base", "--config", "worker.toml"],
        ["bench", "--runs", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: xnli-worker" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "send", "tail"])
def test_a_wrong_setting_exits_with_2_and_a_line_for_each_finding(command: str) -> None:
    shown = xnli_worker(command, XNLI_BATCH__MAX_TOKENS="0", XNLI_KAFKA__GROUP_ID="")
    assert shown.returncode == 2
    assert shown.stdout == ""
    lines = shown.stderr.splitlines()
    assert all(line.startswith("xnli-worker: ") for line in lines)
    assert any("kafka.bootstrap_servers: is required" in line for line in lines)
    assert any("batch.max_tokens = '0'" in line for line in lines)
    assert any("kafka.group_id = ''" in line for line in lines)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SettingsError("one\ntwo"), 2, "xnli-worker: one\nxnli-worker: two\n"),
        (CheckpointError("no model there"), 2, "xnli-worker: no model there\n"),
        (Fenced("another took our place"), 1, "xnli-worker: Fenced: another took our place\n"),
        (RegistryAway("no answer"), 1, "xnli-worker: RegistryAway: no answer\n"),
        (KeyboardInterrupt(), 1, ""),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*_: object) -> int:
        raise raised

    monkeypatch.setattr(cli, "_check", command)
    assert cli.main(["check"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "arguments", [["--version"], ["send", "--config", "absent.toml"], ["tail", "--config", "absent.toml"]]
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = f"""
import sys
from worker import cli
try:
    code = cli.main({arguments!r})
except SystemExit as ended:
    code = ended.code
print(code, *sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.stdout.splitlines()[-1] in {"0", "2"}, shown.stderr


HOSTILE = ("queue", "torch", "json", "argparse", "http", "signal", "structlog", "pydantic")


@pytest.mark.parametrize(
    "way",
    [
        ["-m", "worker.cli"],
        pytest.param(["-m", "worker"], marks=pytest.mark.acceptance),
        [str(ROOT / "worker" / "__main__.py")],
    ],
)
def test_no_module_of_the_current_folder_is_executed(way: list[str], tmp_path: Path) -> None:
    for name in (*HOSTILE, *(("worker",) if way[0] != "-m" else ())):  # Python itself looks there for `-m`
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hostile')")
    shown = subprocess.run(
        [sys.executable, *way, "run"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "hostile" not in shown.stderr
    assert "kafka.bootstrap_servers: is required" in shown.stderr
    assert shown.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_raises_the_flag_and_the_second_ends_the_process(number: signal.Signals) -> None:
    program = """
import signal, sys
from worker.process import StopFlag
stop = StopFlag()
print(stop(), flush=True)
while not stop():
    signal.sigtimedwait([], 0.01)
print(stop(), flush=True)
while True:
    signal.sigtimedwait([], 0.01)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "False\n"
    process.send_signal(number)
    assert process.stdout.readline() == "True\n"
    process.send_signal(number)
    assert process.wait(timeout=10) == 1
    process.stdout.close()
