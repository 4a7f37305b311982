"""The command tree: every command has examples that it understands, and a shell can complete it."""

import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from stratrun.cli.commands import COMMANDS
from stratrun.cli.dispatch import _understood, parser_of
from stratrun.cli.main import run

EXAMPLES = [(name, example) for name, command in COMMANDS.items() for example in command.examples]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"examples:\n  stratrun {name}" in text


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_is_understood(name: str, example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])
    _understood(name, parser_of(name, import_module(COMMANDS[name].module)), words)


def test_help_of_every_command_needs_no_torch() -> None:
    code = (
        "import sys\nfrom stratrun.cli.commands import COMMANDS\nfrom stratrun.cli.main import run\n"
        "for name in COMMANDS:\n    try:\n        run([*name.split(), '--help'])\n    except SystemExit:\n"
        "        pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize("words", ["list", "ckpt ls", "train", "ckpt", ""])
def test_help_before_a_command_is_its_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def told(argv: list[str]) -> str:
        with suppress(SystemExit):
            run(argv)
        return capsys.readouterr().out

    assert told(["help", *words.split()]) == told([*words.split(), "--help"]) != ""


def test_the_overview_tells_what_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    told = capsys.readouterr().out.partition("exit codes:")[2]
    for code in ("0", "1", "2", "130", "143"):
        assert f" {code} " in told


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    script = tmp_path / "stratrun.bash"
    if not script.exists():
        command = [sys.executable, "-m", "stratrun", "completion", "bash"]
        script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    typed = " ".join(map(shlex.quote, ("stratrun", *words)))
    asked = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
        'fn=$(complete -p stratrun | sed "s/.*-F \\([^ ]*\\).*/\\1/"); $fn; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path)
    return done.stdout.split()


def test_a_shell_completes_commands_and_their_options(tmp_path: Path) -> None:
    assert {"train", "ckpt", "list", "launch"} <= set(completed(tmp_path, ""))
    assert completed(tmp_path, "plo") == ["plot-schedule"]
    assert completed(tmp_path, "ckpt", "ver") == ["verify"]
    assert completed(tmp_path, "train", "--res") == ["--resume"]
    assert set(completed(tmp_path, "ckpt", "prune", "--keep")) == {
        "--keep-last",
        "--keep-best",
        "--keep-every",
    }


def test_a_shell_without_the_package_that_writes_scripts_is_told_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run(["completion", "bash"]) == 2
    assert "pip install 'stratrun[completion]'" in capsys.readouterr().err
