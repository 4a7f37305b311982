"""How processes end that have saved in the background, and what training does to a save meanwhile."""

import atexit
import ctypes
import gc
import logging
import multiprocessing.util
import os
import runpy
import subprocess
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any, NoReturn

import pytest

from stratrun.checkpoint.discovery import committed_steps
from stratrun.storage import Folder
from tests.end_to_end.exit_job import ITERATIONS, LEFT_AT
from tests.end_to_end.kill_job import variables_of
from tests.ranks import Ranks

SCRIPT = str(Path(__file__).with_name("exit_job.py"))
# Exit code, last checkpoint, and what must be on stderr.
WAYS: dict[str, tuple[int, int, str]] = {
    "plain": (0, ITERATIONS, ""),
    "closed": (0, ITERATIONS, ""),
    "exit": (4, ITERATIONS, ""),
    "error": (1, ITERATIONS, "ValueError: late"),
    "exit within": (3, LEFT_AT, ""),
    "error within": (1, LEFT_AT, "ValueError: spoiled"),
}


def runs(folder: str, size: int, ways: list[str]) -> list[tuple[str, list[int], list[str], list[int]]] | None:
    """Run the script on so many processes, in each of the ways.

    Returns the way, exit codes, what was said on stderr, and the checkpoints that are there.
    """
    if os.environ.get("RANK") != "0":
        return None
    told = []
    for number, way in enumerate(ways):
        place = Path(folder, f"{number}")
        place.mkdir()
        pids = [_fork(place, own, [SCRIPT, f"{place}/work", way]) for own in variables_of(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [(place / f"said-{rank}").read_text() for rank in range(size)]
        told.append((way, codes, said, committed_steps(Folder(f"{place}/work/checkpoints"))))
    return told


def _fork(place: Path, variables: dict[str, str], argv: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.environ.update(variables)
        file = os.open(place / f"said-{os.environ.get('RANK', '0')}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        _be_interpreter(argv)
    return pid


def _be_interpreter(argv: list[str]) -> NoReturn:
    """What `python SCRIPT` does, the end of the interpreter and of the C++ libraries included."""
    gc.freeze()  # else the end takes seconds, to look through all that pytest holds
    # Temporary folders that libraries have made in pytest are pytest's, which goes on using them.
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    atexit._clear()
    for at_end in (logging.shutdown, multiprocessing.util._exit_function):  # type: ignore[attr-defined]
        atexit.register(at_end)
    sys.argv = argv
    code: Any = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    ctypes.pythonapi.Py_Exit(code)
    os._exit(99)


def check(told: list[tuple[str, list[int], list[str], list[int]]], size: int) -> None:
    for way, codes, said, steps in told:
        code, last, words = WAYS[way]
        assert codes == [code] * size, (way, said)
        assert steps[-1] == last, (way, steps)
        for text in said:
            assert words in text and "terminate called" not in text and "Fatal" not in text
            assert words or not text, (way, text)


@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_ends_has_its_last_checkpoint_and_its_own_exit_code(
    way: str, bare_ranks: Ranks, tmp_path: Path
) -> None:
    (told, _) = bare_ranks(runs, str(tmp_path), 1, [way])
    check(told, 1)


@pytest.mark.parametrize("ways", [["plain"] * 5, ["plain"] * 3 + ["closed"] * 2], ids=["first", "second"])
def test_two_ranks_end_five_times_and_five_more_without_an_abort(
    ways: list[str], bare_ranks: Ranks, tmp_path: Path
) -> None:
    (told, _) = bare_ranks(runs, str(tmp_path), 2, ways)
    assert len(told) == 5
    check(told, 2)


@pytest.mark.parametrize("way", ["exit", "error", "exit within"])
def test_two_ranks_that_leave_keep_their_exit_codes(way: str, bare_ranks: Ranks, tmp_path: Path) -> None:
    (told, _) = bare_ranks(runs, str(tmp_path), 2, [way])
    check(told, 2)


def test_two_processes_of_python_itself_end_well(tmp_path: Path) -> None:
    places = variables_of(2)
    common = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", SCRIPT, str(tmp_path / "work"), "plain"],
            env={**os.environ, **common, **own, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in places
    ]
    said = [process.communicate(timeout=50)[0] for process in processes]
    steps = committed_steps(Folder(tmp_path / "work" / "checkpoints"))
    check([("plain", [process.returncode for process in processes], said, steps)], 2)
