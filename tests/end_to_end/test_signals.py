"""Signals: one rank gets it, all leave after the same step, saved, and go on as if nothing had been."""

import json
import os
import signal
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

SCRIPT = str(Path(__file__).with_name("signal_job.py"))


def job(place: Path, name: str, size: int, options: Any = None, **environ: str) -> list[int]:
    """Run the script on so many processes. Returns their exit codes."""
    place.mkdir(exist_ok=True)
    argv = [SCRIPT, str(place), name, json.dumps(options or {})]
    return codes_of([_fork(place, {**own, **environ}, argv) for own in variables_of(size)])


def codes_of(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def outcome(place: Path, name: str, size: int) -> dict[str, Any]:
    told = [json.loads((place / f"{name}-{rank}.json").read_text()) for rank in range(size)]
    said = (place / "said-0").read_text()[-2000:]
    return {"told": told, "steps": committed_steps(Folder(f"{place}/work/checkpoints")), "said": said}


def struck(folder: str, size: int, moments: tuple[str, ...]) -> dict[str, Any] | None:
    """A run that nothing ends, and for each moment one that is struck then, and gone on with."""
    if os.environ.get("RANK") != "0":
        return None
    found: dict[str, Any] = {}
    mine = dict(os.environ)
    whole = Path(folder, "whole")
    found["whole"] = {"codes": job(whole, "first", size), **outcome(whole, "first", size)}
    weights = torch.load(whole / "weights.pt")
    for moment in moments:
        place = Path(folder, moment.replace(" ", "-"))
        rank = str(size - 1)
        codes = job(place, "first", size, STRIKE=f"{moment}:15", STRUCK_RANK=rank, VAL_PAUSE="0.02")
        first = outcome(place, "first", size)
        again = job(place, "second", size)
        own = torch.load(place / "weights.pt") if (place / "weights.pt").exists() else {}
        same = own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own)
        found[moment] = {"codes": codes, **first, "again": again, "same": same}
        found[moment]["second"] = outcome(place, "second", size)
    os.environ.update(mine)
    return found


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
    size: int, moments: tuple[str, ...], bare_ranks: Ranks, tmp_path: Path
) -> None:
    found = bare_ranks(struck, str(tmp_path), size, moments)[0]
    assert found["whole"]["codes"] == [0] * size, found["whole"]["said"]
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
    mine, found = dict(os.environ), {}
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
    place = Path(folder, "wishes")
    found["wishes"] = {"codes": job(place, "first", 2, PAUSE="0.004", ASKS="1"), **outcome(place, "first", 2)}
    os.environ.update(mine)
    return found


def started(place: Path, size: int, **environ: str) -> list[int]:
    """Processes that hang, each in a group of its own with those that it starts."""
    place.mkdir()
    argv = [SCRIPT, str(place), "first", "{}"]
    pids = [_fork(place, {**own, **environ}, argv) for own in variables_of(size)]
    for pid in pids:
        os.setpgid(pid, pid)
    end = time.monotonic() + 20
    while len(list(place.glob("stalls-*"))) < size and time.monotonic() < end:
        time.sleep(0.02)
    return pids


def test_a_second_signal_leaves_at_once_workers_ignore_theirs_and_wishes_of_one_rank_are_met_by_all(
    bare_ranks: Ranks, tmp_path: Path
) -> None:
    found = bare_ranks(ends, str(tmp_path))[0]
    assert found["twice"] == {"codes": [143], "steps": [5]} and not found["tidy"]
    group = found["group"]
    assert group["codes"] == [130, 130], group["said"]
    first, second = group["told"]
    assert first == second and group["steps"][-1] == first["iter"] >= 7
    wishes = found["wishes"]
    assert wishes["codes"] == [0, 0], wishes["said"]
    first, second = wishes["told"]
    assert first == second
    (asked,) = [at for at in first["validated"] if at % PER_EPOCH]
    assert asked in first["saved"] and 6 <= asked < 8
