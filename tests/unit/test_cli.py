"""The command line: what is understood, what is imported, and what a user reads when it fails."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun.cli.arguments import Arguments, parse
from stratrun.cli.failures import report
from stratrun.cli.imports import import_named
from stratrun.cli.job import settle
from stratrun.cli.main import run
from stratrun.data.json_lines import json_line as line
from stratrun.distributed import program_command, torchrun_command
from stratrun.errors import CheckpointError, CheckpointNotFoundError, ConfigError, StorageError
from stratrun.runner.invocation import Invocation


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("cli_case"):
            del sys.modules[name]


def test_help_answers_without_torch_and_at_once() -> None:
    code = (
        "import sys, time\nstart = time.process_time()\nfrom stratrun.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(time.process_time() - start, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, last = done.stdout.rstrip().rpartition("\n")
    seconds, *modules = last.split()
    assert "torchrun --nproc_per_node=2 -m stratrun train" in text
    assert "torch" not in modules
    assert float(seconds) < 0.3


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import stratrun

    with pytest.raises(SystemExit):
        parse(["--version"])
    assert capsys.readouterr().out == f"stratrun {stratrun.__version__}\n"


def test_settings_and_options_come_in_any_order() -> None:
    words = "--import a.py train c.yaml a.b=1 --work-dir w --import m.n c=x=y --allow pkg -- d=-1"
    assert parse(words.split()) == Arguments(
        job="train",
        config="c.yaml",
        settings=("a.b=1", "c=x=y", "d=-1"),
        imports=("a.py", "m.n"),
        allow=("pkg",),
        work_dir="w",
    )


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ("train c.yaml", False),
        ("train c.yaml --resume", True),
        ("train c.yaml --resume auto", "auto"),
        ("train c.yaml --resume=auto", "auto"),
        ("train c.yaml --resume w/checkpoints/step-00000001 a=1", "w/checkpoints/step-00000001"),
        ("train c.yaml --resume a=1", True),
        ("train --resume c.yaml", True),
        ("train c.yaml --resume --import m", True),
    ],
)
def test_resume_takes_the_next_word_only_if_that_can_be_its_value(words: str, resume: bool | str) -> None:
    arguments = parse(words.split())
    assert arguments.resume == resume
    assert arguments.config == "c.yaml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("trian c.yaml", "no job is called 'trian'; did you mean 'train'?"),
        ("train", "which config? write: stratrun train CONFIG"),
        ("train a=1", "which config? write: stratrun train CONFIG"),
        ("train c.yaml d.yaml", "'d.yaml' is no setting; settings are given as key=value"),
        ("train c.yaml --optimizer.lr=1", "a value of the config is set without dashes, optimizer.lr=1"),
        ("train c.yaml --workdir x", "did you mean '--work-dir'?"),
        ("train c.yaml --work-dir", "expected one argument"),
    ],
)
def test_a_mistyped_command_is_told_what_is_meant(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words.split()) == 2
    output = capsys.readouterr().err
    assert output.startswith("stratrun: error: ")
    assert told in output
    assert output.count("\n") <= 3


def test_the_name_of_a_run_is_that_of_its_config_unless_it_has_one() -> None:
    Path("digits.v2.yaml").write_text("a: 1")
    Path("named.yaml").write_text("name: other")
    assert settle(Arguments("train", "digits.v2.yaml"))["name"] == "digits.v2"
    assert settle(Arguments("train", "named.yaml"))["name"] == "other"


@pytest.mark.parametrize(
    ("load_from", "work_dir"),
    [
        ("w/d/checkpoints/step-00000003", "w/d"),
        ("s3://b/w/checkpoints/step-00000003/", "s3://b/w"),
        ("{path: w/d/checkpoints/step-00000003, strict: false}", "w/d"),
        ("w/d/best", "w/d"),
        ("w/d/checkpoints/best:accuracy", "w/d"),
        ("best", "work_dirs/c"),
        ("weights.safetensors", "work_dirs/c"),
        (None, "work_dirs/c"),
    ],
)
def test_an_evaluation_keeps_its_files_beside_the_weights(load_from: str | None, work_dir: str) -> None:
    Path("c.yaml").write_text("a: 1" if load_from is None else f"load_from: {load_from}")
    assert settle(Arguments("test", "c.yaml"))["work_dir"] == work_dir
    assert settle(Arguments("test", "c.yaml", work_dir="mine"))["work_dir"] == "mine"
    assert settle(Arguments("train", "c.yaml")).get("work_dir") is None


def test_a_file_is_imported_once_and_its_neighbours_can_be_imported() -> None:
    Path("cli_case_near.py").write_text("VALUE = 3")
    Path("cli_case_file.py").write_text("import cli_case_near\nvalue = cli_case_near.VALUE\nseen = []")
    import_named("cli_case_file.py")
    sys.modules["cli_case_file"].seen.append(1)
    import_named("./cli_case_file.py")
    assert sys.modules["cli_case_file"].seen == [1]
    assert sys.modules["cli_case_file"].value == 3


def test_a_module_of_the_current_folder_is_found() -> None:
    Path("cli_case_package").mkdir()
    Path("cli_case_package/part.py").write_text("VALUE = 4")
    import_named("cli_case_package.part")
    assert sys.modules["cli_case_package.part"].VALUE == 4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cli_case_model.py", "there is no such file; did you mean 'cli_case_models.py'?"),
        ("nowhere/a.py", "no Python file is in 'nowhere'"),
        ("cli_case_models.part", "there is no module"),
        ("cli_case_nothing", "a file is given with its ending .py"),
        ("json.py", "'json' is the name of another module; rename the file"),
    ],
)
def test_what_cannot_be_imported_is_explained(name: str, told: str) -> None:
    Path("cli_case_models.py").write_text("")
    Path("json.py").write_text("")
    with pytest.raises(ConfigError, match="--import") as caught:
        import_named(name)
    assert told in str(caught.value)


def test_what_an_imported_file_raises_is_left_alone_and_forgotten() -> None:
    Path("cli_case_bad.py").write_text("import cli_case_missing")
    for name in ("cli_case_bad.py", "cli_case_bad"):
        with pytest.raises(ModuleNotFoundError, match="cli_case_missing"):
            import_named(name)
        assert "cli_case_bad" not in sys.modules


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("lr=x is no number"), 2, "stratrun: error: lr=x is no number\n"),
        (CheckpointNotFoundError("none in w"), 2, "stratrun: error: none in w\n"),
        (CheckpointError("disk full"), 1, "stratrun: error: disk full\n"),
        (StorageError("disk full"), 1, "stratrun: error: disk full\n"),
        (KeyboardInterrupt(), 130, "stratrun: interrupted; "),
    ],
)
def test_an_error_of_ours_is_a_few_lines_and_its_kind_the_exit_code(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(caught(error)) == code
    output = capsys.readouterr().err
    assert output.startswith(text)
    assert "Traceback" not in output


def test_notes_of_an_error_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("wrong")
    error.add_note("while building model: Net")
    report(caught(error))
    assert capsys.readouterr().err == "stratrun: error: wrong\n  while building model: Net\n"


def test_what_a_config_says_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text('"lo\\e[2Jss": cross_entropy\nmodel: {type: Linear}\n')
    for command in ("check", "train"):
        assert run([command, str(tmp_path / "run.yaml")]) == 2
        told = "".join(capsys.readouterr())
        assert "\x1b" not in told and "\\x1b[2J" in told


def test_the_full_traceback_of_our_own_error_is_there_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATRUN_FULL_TRACEBACK", "1")
    assert report(caught(ConfigError("wrong"))) == 2
    assert "Traceback" in capsys.readouterr().err


def failing_import() -> BaseException:
    """An error of a user's file with frames of ours around it."""
    Path("cli_case_user.py").write_text("def fail():\n    raise ValueError('mine')\nfail()\n")
    try:
        import_named("cli_case_user.py")
    except ValueError as error:
        return error
    raise AssertionError("it did not fail")


def test_an_error_of_the_user_s_code_shows_the_user_s_frames(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failing_import()
    assert report(error) == 1
    short = capsys.readouterr().err
    assert "in fail" in short and "ValueError: mine" in short
    assert "imports.py" not in short
    assert "frames of stratrun are left out" in short
    monkeypatch.setenv("STRATRUN_FULL_TRACEBACK", "1")
    report(error)
    assert "imports.py" in capsys.readouterr().err


def test_of_launched_processes_the_first_speaks_for_those_that_failed_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for rank, text in enumerate(["same", "same", "other"]):
        folder = tmp_path / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        report(caught(ConfigError(text)))
        said.append(capsys.readouterr().err)
    assert said == ["stratrun: error: same\n", "", "stratrun: error: other\n"]


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        (torch.tensor([1.5, 2.0]), "[1.5, 2.0]"),
        ({"label": torch.tensor(3), "text": "né"}, '{"label": 3, "text": "né"}'),
        ((1, None, True, float("nan"), -float("inf")), '[1, null, true, "NaN", "-Infinity"]'),
        (Path("a/b"), '"a/b"'),
    ],
)
def test_a_prediction_is_one_line_of_json(prediction: Any, text: str) -> None:
    assert line(prediction) == text
    json.loads(line(prediction))


def with_program(monkeypatch: pytest.MonkeyPatch, *argv: str, module: str | None = None) -> None:
    monkeypatch.setattr(sys, "argv", list(argv))
    spec = None if module is None else __import__("importlib.util").util.find_spec(module)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)


def test_a_program_is_spelled_as_the_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Path("venv", "bin")
    programs.mkdir(parents=True)
    for name in ("python", "torchrun", "stratrun"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs.resolve() / "python"))
    with_program(monkeypatch, str(programs / "stratrun"), "train", "my config.yaml")
    launched = "venv/bin/torchrun --nproc_per_node=2 -m stratrun train 'my config.yaml'"
    assert torchrun_command() == launched
    assert program_command(["val", "c"]) == "venv/bin/stratrun val c"
    monkeypatch.setenv("PATH", str(programs.resolve()), prepend=os.pathsep)
    assert torchrun_command() == launched.removeprefix("venv/bin/")
    assert program_command(["val", "c"]) == "stratrun val c"
    with_program(monkeypatch, "train.py", "--fast")
    assert program_command(["--fast"]) == "python train.py --fast"
    assert torchrun_command(4) == "torchrun --nproc_per_node=4 train.py --fast"
    (programs / "torchrun").unlink()
    assert torchrun_command(4) == "python -m torch.distributed.run --nproc_per_node=4 train.py --fast"
    with_program(monkeypatch, "/somewhere/stratrun/__main__.py", "train", module="stratrun.__main__")
    assert program_command(["train"]) == "python -m stratrun train"


def test_the_next_command_keeps_what_built_the_model_and_not_where_this_run_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_program(monkeypatch, "stratrun")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    settings = ("model.width=3", "load_from=old", "resume=auto", "work_dir=w")
    command = Invocation("c.yaml", settings, ("--import", "m.py")).command("test", load_from="w/step-1")
    assert command.endswith(" test c.yaml model.width=3 load_from=w/step-1 --import m.py")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "--nproc_per_node=2 -m stratrun test c.yaml" in Invocation("c.yaml").command("test")


def test_a_bad_config_is_refused_before_torch_is_imported() -> None:
    Path("bad.yaml").write_text("model: {type: Net\n")
    code = (
        "import sys\nfrom stratrun.cli.main import run\n"
        "assert run(['train', 'bad.yaml']) == 2\nassert 'torch' not in sys.modules"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bad.yaml:" in done.stderr
