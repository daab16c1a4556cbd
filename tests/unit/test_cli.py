"""The command line from outside: what it prints, how it exits, and that it does not load what it does not need."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import Terminal
from worker import __version__, cli
from worker.commands import check as check_module
from worker.errors import CheckpointError, Fenced, RegistryAway, SettingsError

ROOT = Path(__file__).parents[2]
COMMANDS = ("run", "demo", "send", "tail", "check", "dead-letters", "label-sets", "bench", "evaluate", "calibrate")
LISTED_S = 0.3  # of a processor: other work of the machine does not count


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


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_the_commands_and_the_exit_codes(arguments: list[str]) -> None:
    shown = xnli_worker(*arguments)
    assert shown.returncode == (0 if arguments else 2)
    text = shown.stdout if arguments else shown.stderr
    sections = ["First steps:", "The worker:", "Requests and results:", "Quality:", "Settings and surroundings:"]
    assert [line for line in text.splitlines() if line in sections] == sections
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "Exit codes: 0 done or drained, 1 failed while running," in text
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, "classify", "broker", "topics create", "config init", "dead-letters list", "dead-letters replay"],
)
def test_each_command_has_a_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 80
    assert f"Usage: xnli-worker {command}" in text
    assert "  $ xnli-worker" in text or "Commands:" in text  # an example, or commands that have examples


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xnli-worker {__version__}\n"


def processor_s(*arguments: str) -> float:
    """Seconds of processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert xnli_worker(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--version"], ["dead-letters", "list", "--help"]])
def test_what_only_prints_is_there_at_once(arguments: list[str]) -> None:
    assert min(processor_s(*arguments) for _ in range(3)) < LISTED_S


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["snd"], "No such command 'snd'. Did you mean 'send'?"),
        (["dead-letters", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["run", "--cnofig", "x"], "No such option: --cnofig (Possible options: --config)"),
        (["tail", "--count", "0"], "Invalid value for '--count'"),
        (["tail", "--count", "x"], "Invalid value for '--count'"),
        (["send", "a", "b"], "unexpected extra argument"),
        (["bench", "--shape", "huge"], "'huge' is not one of 'small', 'base', 'large'"),
        (["bench", "--shape", "base", "--config", "worker.toml"], "--shape and --config are two models: keep one"),
        (["bench", "--runs", "0"], "'--runs'"),
        (["dead-letters"], "Usage: xnli-worker dead-letters"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_would_be_right(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str) -> None:
    given = {
        "bash": {"COMP_WORDS": "xnli-worker dead-letters re", "COMP_CWORD": "2"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "xnli-worker dead-letters re"},
        "fish": {"_TYPER_COMPLETE_ARGS": "xnli-worker dead-letters re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    assert f"complete_{shell}" in xnli_worker(_XNLI_WORKER_COMPLETE=f"source_{shell}").stdout
    assert "replay" in xnli_worker(_XNLI_WORKER_COMPLETE=f"complete_{shell}", **given).stdout


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
        (Fenced("another took our place"), 1, "xnli-worker: another took our place\n"),
        (RegistryAway("no answer"), 1, "xnli-worker: no answer\n"),
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
    def command(*_: object, **__: object) -> int:
        raise raised

    monkeypatch.setattr(check_module, "check", command)
    assert cli.main(["check"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "not_imported"),
    [
        # (To import pydantic takes longer than all else that a help needs.)
        (["--version"], {"torch", "transformers", "confluent_kafka", "pydantic", "rich"}),
        (["tail", "--help"], {"torch", "transformers", "confluent_kafka", "pydantic", "rich"}),
        (["send", "--config", "absent.toml"], {"torch", "transformers"}),
        (["tail", "--config", "absent.toml"], {"torch", "transformers"}),
    ],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str], not_imported: set[str]) -> None:
    program = f"""
import sys
from worker import cli
try:
    code = cli.main({arguments!r})
except SystemExit as ended:
    code = ended.code
print(code, *sorted({not_imported!r} & set(sys.modules)))
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


def test_the_first_ctrl_c_says_how_to_quit_at_once() -> None:
    program = """
import signal
from worker.process import StopFlag
stop = StopFlag("draining")
print("ready", flush=True)
while not stop():
    signal.sigtimedwait([], 0.01)
"""
    terminal = Terminal([sys.executable, "-c", program], environment(PYTHONPATH=str(ROOT)), ROOT)
    terminal.read_until("ready")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "xnli-worker: draining; again to quit\n" in terminal.text
