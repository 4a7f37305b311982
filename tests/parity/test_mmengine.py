"""MMEngine itself beside us, where it is installed; the unit tests have the same against plain loops."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "mmengine_parity.py"


def test_the_readme_example_has_the_loss_curve_that_mmengine_gives_it(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    done = subprocess.run(
        [sys.executable, PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
