"""SIGTERM to rank 1 alone, at random moments of runs on two ranks; python -m tests.end_to_end.random_signals.

Each run is gone on with, and has to end with the weights of one that was left in peace. With `--launcher`
the signal goes to torchrun, which passes it on to both. Takes some minutes, most of them for imports.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stratrun.checkpoint.discovery import committed_steps
from stratrun.storage import Folder
from tests.end_to_end.kill_job import variables_of
from tests.end_to_end.signal_job import ITERATIONS

SCRIPT = str(Path(__file__).with_name("signal_job.py"))
ROOT = str(Path(__file__).parents[2])
# Of the time from the start of the job's script to its end.
PAUSE = "0.01"


def start(place: Path, name: str, launcher: bool) -> list[subprocess.Popen[bytes]]:
    place.mkdir(exist_ok=True)
    environ = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "PAUSE": PAUSE,
        "MASTER_ADDR": "127.0.0.1",
        "VAL_PAUSE": "0.01",
    }
    log = (place / f"{name}.log").open("wb")
    if launcher:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        return [subprocess.Popen([*torchrun, SCRIPT, str(place), name], env=environ, stdout=log, stderr=log)]
    command = [sys.executable, SCRIPT, str(place), name]
    return [
        subprocess.Popen(command, env={**environ, **own}, stdout=log, stderr=log) for own in variables_of(2)
    ]


def attempt(place: Path, moment: float, launcher: bool) -> dict[str, Any]:
    """One run that is struck so many seconds after its model was built, and gone on with."""
    processes = start(place, "first", launcher)
    while not (place / "work").exists() and processes[0].poll() is None:
        time.sleep(0.005)
    time.sleep(moment)
    late = any((place / f"first-{rank}.json").exists() for rank in range(2))
    begun = time.monotonic()
    processes[-1].send_signal(signal.SIGTERM)
    codes = [one.wait() for one in processes]
    seconds = time.monotonic() - begun
    told = [json.loads((place / f"first-{rank}.json").read_text())["iter"] for rank in range(2)]
    steps = committed_steps(Folder(f"{place}/work/checkpoints"))
    again = [one.wait() for one in start(place, "second", launcher)]
    return {
        "late": late,  # training was done before: what comes then is not ours any more
        "codes": codes,
        "iter": told,
        "steps": steps,
        "again": again,
        "seconds": round(seconds, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", action="store_true")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        processes = start(whole, "first", False)
        while not (whole / "work").exists():
            time.sleep(0.005)
        begun = time.monotonic()
        while not (whole / "weights.pt").exists() and processes[0].poll() is None:
            time.sleep(0.005)
        length = time.monotonic() - begun
        assert [one.wait() for one in processes] == [0, 0], (whole / "first.log").read_text()
        weights = torch.load(whole / "weights.pt")
        print(f"left in peace it takes {length:.1f} s")
        for number in range(given.times):
            place = Path(folder, f"{number}")
            moment = draw.random() * length
            found = attempt(place, moment, given.launcher)
            own = torch.load(place / "weights.pt") if (place / "weights.pt").exists() else {}
            same = own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own)
            expected = found["codes"] == ([1] if given.launcher else [143, 143])
            agreed = len(set(found["iter"])) == 1 and found["steps"][-1] == found["iter"][0]
            # What comes after the last agreement, all being done, ends the process that it came to.
            done = found["codes"] == [0, 143] and found["iter"] == [ITERATIONS] * 2
            good = found["late"] or done or (expected and agreed and same and set(found["again"]) == {0})
            wrong += not good
            print(f"{moment:5.2f} s: {'good' if good else 'WRONG'}, same={same} {found}", flush=True)
            if not good:
                print((place / "first.log").read_text()[-3000:])
    return int(wrong > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
