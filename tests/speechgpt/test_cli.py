"""The command table, exit codes, and what happens when standard output or the user goes away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt import cli

SPEECHGPT = [sys.executable, "-m", "speechgpt.cli"]


def command(function, monkeypatch, name="talk"):
    """Replaces a subcommand's function."""
    monkeypatch.setattr(cli, "_load", lambda target: function)
    return lambda *argv: cli.main([name, *argv])


def test_help_lists_every_command_with_one_line(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for commands in cli.COMMANDS.values():
        for name, (_, line) in commands.items():
            assert f"  {name}" in printed and line in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_no_command_is_an_error(capsys):
    assert cli.main([]) == 2
    found = capsys.readouterr()
    assert not found.out and "usage: speechgpt COMMAND" in found.err


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["tlak"]) == 2
    assert capsys.readouterr().err == ("speechgpt: unknown command 'tlak'; did you mean `speechgpt talk`?\n")


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("speechgpt 0.")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.wav: not\naudio"), "a.wav: not audio"),
        (FileNotFoundError(2, "No such file", "b.wav"), "b.wav: no such file or directory"),
        (OSError(28, "No space left on device"), "no space left on the disk"),
        (MemoryError(), "out of memory"),
        (ModuleNotFoundError("gone", name="gone"), "the Python package gone is missing; `make setup` "),
    ],
)
def test_errors_are_one_line_and_exit_code_two(error, line, monkeypatch, capsys):
    def fails(argv):
        raise error

    assert command(fails, monkeypatch)() == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith(f"speechgpt talk: {line}")
    assert found.err.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    def fails(argv):
        raise ValueError("deep inside")

    monkeypatch.setenv("SPEECHGPT_DEBUG", "1")
    with pytest.raises(ValueError, match="deep inside"):
        command(fails, monkeypatch)()


def test_interrupting_is_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert command(interrupted, monkeypatch)() == 130
    assert capsys.readouterr().err.strip() == "speechgpt talk: interrupted"


def test_the_functions_code_is_the_exit_code(monkeypatch):
    assert command(lambda argv: 2, monkeypatch)() == 2
    assert command(lambda argv: None, monkeypatch)() == 0


@pytest.fixture
def printing(tmp_path) -> list[str]:
    """A command line whose subcommand prints far more than a pipe holds."""
    code = (
        "import sys; from speechgpt import cli;"
        "cli._load = lambda target: (lambda argv: [print('x' * 200, flush=True) for _ in range(5000)] and 0);"
        "sys.exit(cli.main(['talk']))"
    )
    return [sys.executable, "-c", code]


def test_a_closed_pipe_ends_quietly(printing):
    running = subprocess.Popen(printing, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(timeout=60) == cli.PIPE_CLOSED
    assert running.stderr.read() == ""
    running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_one_line(printing):
    with open("/dev/full", "w") as full:
        found = subprocess.run(printing, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == 2
    assert found.stderr == "speechgpt talk: no space left on the disk\n"


def test_bad_arguments_are_exit_code_two():
    found = subprocess.run([*SPEECHGPT, "talk", "--no-such-flag"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "--no-such-flag" in found.stderr


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("speechgpt")
    if not program.exists():
        pytest.skip("not installed beside this Python")
    found = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and "talk" in found.stdout


def test_libraries_are_told_to_be_quiet(monkeypatch):
    for variable in cli.QUIET:
        monkeypatch.delenv(variable, raising=False)
    assert command(lambda argv: 0, monkeypatch)() == 0
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
