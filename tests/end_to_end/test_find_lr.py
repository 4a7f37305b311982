"""``stratrun find-lr`` as a user types it, and range tests that are killed."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.test_cli import WORDS, folder, stratrun, warm_path

__all__ = ["folder", "warm_path"]

pytestmark = pytest.mark.timeout(240)
JOB = Path(__file__).with_name("find_lr_job.py")


def test_the_command_says_a_rate_draws_a_curve_and_writes_files(warm_path: None) -> None:
    done = stratrun("find-lr", *WORDS, "--out", "lr.png", "--out", "lr.json", "optimizer.type=SGD")
    assert done.returncode == 0, done.stderr
    written = json.loads(Path("lr.json").read_text())
    assert f"suggestion: lr={written['suggestion']:.3g}" in done.stdout
    assert "smoothed loss" in done.stdout and "█" in done.stdout
    assert len(written["lrs"]) == len(written["losses"]) <= 100
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("work_dirs").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_under_torchrun_it_finds_the_same_and_says_it_once(strategy: str, warm_path: None) -> None:
    options = ["--iters", "30", "--start-lr", "1e-4", "--out", "lr.json"]
    assert stratrun("find-lr", *WORDS, *options).returncode == 0
    alone = json.loads(Path("lr.json").read_text())
    words = ["--nproc_per_node=2", "-m", "stratrun", "find-lr", *WORDS, f"strategy={strategy}", *options]
    done = subprocess.run(["torchrun", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("suggestion:") == 1
    assert json.loads(Path("lr.json").read_text())["losses"] == pytest.approx(alone["losses"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--start", "1", "--end", "0.1"], "start=1.0 must be below end=0.1"),
        (["--out", "lr.jpeg"], "'lr.jpeg' is no picture"),
        (["--out", "nowhere/lr.png"], "there is no folder nowhere"),
        (["--iter", "20"], "did you mean '--iters'"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], told: str, warm_path: None) -> None:
    done = stratrun("find-lr", *WORDS, *words)
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr


def job(work_dir: Path, at: int, find: str) -> subprocess.CompletedProcess[str]:
    words = ["python", str(JOB), str(work_dir), str(at), find]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def digest(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[0]


def test_a_process_that_is_killed_in_it_or_after_it_is_begun_again_to_the_same_bits(
    folder: Path, warm_path: None
) -> None:
    truth = digest(job(folder / "whole", 0, "train"))
    # The test reads 112 samples in 15 updates; then training does.
    assert job(folder / "run", 60, "find").returncode == -9
    assert not (folder / "run").exists()
    assert job(folder / "run", 190, "find").returncode == -9
    assert list((folder / "run" / "checkpoints").glob("step-*"))
    assert digest(job(folder / "run", 0, "find")) == truth
