"""``stratrun new``: the project it makes trains at once, and nothing that is there is touched."""

import subprocess
import sys
from pathlib import Path

import pytest

from stratrun.cli.main import run


def done_in(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_a_new_project_trains_at_once_and_its_tests_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    folder = tmp_path / "deep" / "spirals"
    assert run(["new", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"next: cd {folder} && stratrun train config.yaml --import parts.py" in said
    told = done_in(folder, "stratrun", "train", "config.yaml", "--import", "parts.py")
    accuracy = float(told.rpartition("best accuracy=")[2].partition(":")[0])
    assert accuracy > 0.9
    assert "3 passed" in done_in(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert (folder / "README.md").read_text().startswith("# spirals\n")
    assert (folder / ".gitignore").is_file()
    tested = done_in(
        folder, "stratrun", "test", "config.yaml", "--import", "parts.py", "--checkpoint", "best",
        "--work-dir", "work_dirs/config",
    )  # fmt: skip
    assert "accuracy=0.9" in tested


def test_files_that_are_there_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    assert run(["new", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert run(["new", str(tmp_path)]) == 0
    assert (tmp_path / "parts.py").is_file()
