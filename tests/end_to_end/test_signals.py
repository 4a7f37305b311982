"""Signals: one rank gets it, all leave after the same step, saved, and go on as if nothing had been."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun.checkpoint.discovery import committed_steps
from stratrun.storage import Folder
from tests.end_to_end.kill_job import variables_of
from tests.end_to_end.signal_job import ITERATIONS, PER_EPOCH
from tests.end_to_end.test_processes import _fork
from tests.ranks import Ranks
from tests.warm import ROOT, Warm

SCRIPT = str(Path(__file__).with_name("signal_job.py"))


def begin(place: Path, name: str, size: int, **environ: str) -> list[int]:
    """Run the script on so many processes."""
    place.mkdir(exist_ok=True)
    argv = [SCRIPT, str(place), name, "{}"]
    return [_fork(place, {**own, **environ}, argv) for own in variables_of(size)]


def codes_of(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def outcome(place: Path, name: str, size: int) -> dict[str, Any]:
    told = [json.loads((place / f"{name}-{rank}.json").read_text()) for rank in range(size)]
    said = (place / "said-0").read_text()[-2000:]
    return {"told": told, "steps": committed_steps(Folder(f"{place}/work/checkpoints")), "said": said}


def struck(folder: str, undisturbed: str, size: int, moments: tuple[str, ...]) -> dict[str, Any] | None:
    """For each moment a run that is struck then, and gone on with; and one that nothing ends, made once.

    All at once, as they mostly wait.
    """
    if os.environ.get("RANK") != "0":
        return None
    mine, whole = dict(os.environ), Path(undisturbed, f"{size}")
    places = {moment: Path(folder, moment.replace(" ", "-")) for moment in moments}
    strikes = {"STRUCK_RANK": str(size - 1), "VAL_PAUSE": "0.02"}
    begun = {
        moment: begin(place, "first", size, STRIKE=f"{moment}:15", **strikes)
        for moment, place in places.items()
    }
    made = [] if whole.exists() else begin(whole, "first", size)
    found: dict[str, Any] = {
        moment: {"codes": codes_of(pids), **outcome(places[moment], "first", size)}
        for moment, pids in begun.items()
    }
    again = {moment: begin(place, "second", size) for moment, place in places.items()}
    found["whole"] = {"codes": codes_of(made), **outcome(whole, "first", size)}
    weights = torch.load(whole / "weights.pt")
    for moment, place in places.items():
        found[moment]["again"] = codes_of(again[moment])
        own = torch.load(place / "weights.pt") if (place / "weights.pt").exists() else {}
        same = own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own)
        found[moment] |= {"same": same, "second": outcome(place, "second", size)}
    os.environ.clear()
    os.environ.update(mine)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are that nothing ends, by their number of processes."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.mark.parametrize(
    ("size", "moments"),
    [
        (1, ("building", "validation")),
        (2, ("building", "step 9")),
        (2, ("data", "last")),
        (2, ("validation", "saving")),
    ],
)
def test_a_signal_to_one_rank_alone_ends_all_after_the_same_step_saved_and_the_rest_is_the_same_to_the_bit(
    size: int, moments: tuple[str, ...], bare_ranks: Ranks, undisturbed: Path, tmp_path: Path
) -> None:
    found = bare_ranks(struck, str(tmp_path), str(undisturbed), size, moments)[0]
    assert not any(found["whole"]["codes"]), found["whole"]["said"]
    for moment in moments:
        one = found[moment]
        assert one["codes"] == [128 + signal.SIGTERM] * size, (moment, one["codes"], one["said"])
        ends = {told["iter"] for told in one["told"]}
        assert len(ends) == 1, (moment, one["told"])
        (end,) = ends
        # The newest checkpoint is that of the step at which they left, and everyone's.
        assert one["steps"][-1] == end, (moment, one["steps"], end)
        assert end == (ITERATIONS if moment == "last" else end) and (moment != "building" or end == 0)
        assert one["again"] == [0] * size, (moment, one["second"]["said"])
        assert one["same"], moment
        # A validation that was broken off is made once more, and no other.
        both = one["told"][0]["validated"] + one["second"]["told"][0]["validated"]
        assert both == found["whole"]["told"][0]["validated"], (moment, both)


def ends(folder: str) -> dict[str, Any] | None:
    """Two signals to a step that hangs, one to a process and its loader worker, and wishes of one rank."""
    if os.environ.get("RANK") != "0":
        return None
    mine = dict(os.environ)
    found: dict[str, Any] = {}
    place = Path(folder, "twice")
    pids = started(place, 1, STALL="7")
    for _ in range(2):
        os.kill(pids[0], signal.SIGTERM)
        time.sleep(0.3)
    found["twice"] = {"codes": codes_of(pids), "steps": committed_steps(Folder(f"{place}/work/checkpoints"))}
    found["tidy"] = (place / "first-0.json").exists()
    os.environ.update(mine)
    place = Path(folder, "group")
    pids = started(place, 2, STALL="7", STALLS_FOR="0.5", WORKERS="1")
    os.killpg(pids[0], signal.SIGINT)
    found["group"] = {"codes": codes_of(pids), **outcome(place, "first", 2)}
    os.environ.update(mine)
    place = Path(folder, "ready")
    pids = started(place, 1, STALL="3", STALLS_FOR="0.5", READY="1")
    os.killpg(pids[0], signal.SIGTERM)
    found["ready"] = {"codes": codes_of(pids), **outcome(place, "first", 1)}
    os.environ.update(mine)
    place = Path(folder, "wishes")
    found["wishes"] = {
        "codes": codes_of(begin(place, "first", 2, EVERY="0", ASKS="1")),
        **outcome(place, "first", 2),
    }
    os.environ.update(mine)
    return found


def started(place: Path, size: int, **environ: str) -> list[int]:
    """Processes that hang, each in a group of its own with those that it starts."""
    pids = begin(place, "first", size, **environ)
    for pid in pids:
        os.setpgid(pid, pid)
    until_stalled(place, size)
    return pids


def until_stalled(place: Path, size: int) -> None:
    end = time.monotonic() + 40
    while len(list(place.glob("stalls-*"))) < size and time.monotonic() < end:
        time.sleep(0.02)


def test_a_signal_to_torchrun_ends_both_ranks_saved_before_it_ends_itself(warm: Warm, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "STALL": "7",
        "STALLS_FOR": "0.5",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        f"{warm.folder}/torchrun",
        "--standalone",
        "--nproc_per_node=2",
        SCRIPT,
        str(tmp_path),
        "first",
    ]
    with (tmp_path / "said-0").open("w") as said:
        launcher = subprocess.Popen(command, env=environ, stdout=said, stderr=said)
    until_stalled(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == 1
    first, second = outcome(tmp_path, "first", 2)["told"]
    assert first == second and first["saved"][-1] == first["iter"] >= 7
    assert committed_steps(Folder(f"{tmp_path}/work/checkpoints"))[-1] == first["iter"]


def test_a_second_signal_leaves_at_once_workers_ignore_theirs_and_wishes_of_one_rank_are_met_by_all(
    bare_ranks: Ranks, tmp_path: Path
) -> None:
    found = bare_ranks(ends, str(tmp_path))[0]
    assert found["twice"] == {"codes": [143], "steps": [5]} and not found["tidy"]
    group = found["group"]
    assert group["codes"] == [130, 130], group["said"]
    first, second = group["told"]
    assert first == second and group["steps"][-1] == first["iter"] >= 7
    # A loader of the user's own has workers that we have not started.
    ready = found["ready"]
    assert ready["codes"] == [143], ready["said"]
    assert ready["steps"][-1] == ready["told"][0]["iter"] >= 3
    wishes = found["wishes"]
    assert wishes["codes"] == [0, 0], wishes["said"]
    first, second = wishes["told"]
    assert first == second
    (asked,) = [at for at in first["validated"] if at % PER_EPOCH]
    assert asked in first["saved"] and 6 <= asked < 8
