"""Programs that start warm behave as those that do not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import Warm

SCRIPT = """
import atexit, os, sys
print(sys.argv[1:], os.getcwd(), os.environ["WORD"], sys.stdin.read(), __name__)
print(sys.path[0], file=sys.stderr)
atexit.register(print, "late")
sys.exit(3)
"""


@pytest.mark.parametrize("words", [["script.py"], ["-u", "-m", "script"]])
def test_a_program_gets_and_gives_what_it_does_when_started_cold(
    words: list[str], warm: Warm, tmp_path: Path
) -> None:
    Path(tmp_path, "script.py").write_text(SCRIPT)
    environ = {**os.environ, "WORD": "hallo"}
    told = [
        subprocess.run(
            [program, *words, "a b", "c"],
            cwd=tmp_path,
            env=environ,
            input="read",
            capture_output=True,
            text=True,
            check=False,
        )
        for program in (sys.executable, warm.folder / "python")
    ]
    cold, hot = [(done.returncode, done.stdout, done.stderr) for done in told]
    assert cold == hot and cold[0] == 3 and "late" in cold[1]


def test_ends_by_errors_and_signals_are_those_of_the_program_and_what_it_starts_is_warm(
    warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = str(warm.folder / "python")

    def code_of(text: str) -> int:
        return subprocess.run([python, "-c", text], stderr=subprocess.DEVNULL, check=False).returncode

    assert code_of("raise ValueError") == 1
    assert code_of("raise SystemExit") == 0
    assert code_of("import os; os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert code_of("raise KeyboardInterrupt") == -signal.SIGINT
    threads = "import sys, torch; sys.exit(torch.get_num_threads())"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert code_of(threads) == 3
    inner = "import sys; raise SystemExit(5 if 'torch' in sys.modules else 6)"
    assert (
        code_of(f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))") == 5
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_program_reaches_what_runs(number: int, warm: Warm, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    text = f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = subprocess.Popen([warm.folder / "python", "-c", text])
    while not (begun.exists() and begun.read_text()):
        time.sleep(0.01)
    program.send_signal(number)
    assert program.wait() == -number
    deadline = time.monotonic() + 10
    while Path("/proc", begun.read_text()).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path("/proc", begun.read_text()).exists()
