"""Ranks that are killed, or hang, in a save beside the run: what the others do about it."""

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.kill_job import start, variables_of
from tests.end_to_end.test_background_runs import made, slow, steps_in
from tests.ranks import Ranks


def lose(folder: str, way: str, victim: int, size: int) -> list[tuple[str, str, float] | None] | None:
    """Ranks of which one is killed, or hangs, in its second save. Returns what became of each."""
    if os.environ["RANK"] != "0":
        return None
    pids = []
    for rank, own in enumerate(variables_of(size)):
        job = _Job(folder, way if rank == victim else "", rank)
        pids.append(start(job, {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", **own}))
    for pid in pids:
        os.waitpid(pid, 0)
    files = [Path(folder, f"told-{rank}") for rank in range(size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


class _Job:
    def __init__(self, folder: str, way: str, rank: int) -> None:
        self.folder, self.way, self.rank = folder, way, rank
        self.writes = 0

    def _fault(self) -> None:
        self.writes += 1
        if self.writes == 2:
            Path(self.folder, "begun").touch()
            if self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.way == "stuck":
                time.sleep(25)

    def __call__(self) -> None:
        runner = made(
            f"{self.folder}/work",
            100_000,
            save={"interval": 10},
            checkpoint_cfg={
                "deadline": 2 if self.way == "stuck" or Path(self.folder, "hangs").exists() else 60
            },
        )
        with slow(0.0, self._fault):
            try:
                runner.train()
            except BaseException as error:
                told = "\n".join([str(error), *getattr(error, "__notes__", ())])
                lasted = time.time() - Path(self.folder, "begun").stat().st_mtime
                result = type(error).__name__, told, lasted
                Path(self.folder, f"told-{self.rank}").write_bytes(pickle.dumps(result))


@pytest.mark.parametrize(("size", "victim"), [(2, 1), (2, 0), (4, 2)])
def test_when_a_rank_is_killed_in_a_save_the_others_end_and_name_it(
    size: int, victim: int, bare_ranks: Ranks, tmp_path: Path
) -> None:
    (results, _) = bare_ranks(lose, str(tmp_path), "killed", victim, size)
    for rank, result in enumerate(results):
        if rank == victim:
            assert result is None
            continue
        _, told, seconds = result
        assert seconds < 10
        assert f"rank {victim}" in told, told
    assert steps_in(f"{tmp_path}/work")[0] == 10


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stuck_in_a_write_is_named_by_all_at_the_deadline(
    victim: int, bare_ranks: Ranks, tmp_path: Path
) -> None:
    (tmp_path / "hangs").touch()
    (results, _) = bare_ranks(lose, str(tmp_path), "stuck", victim, 2)
    (kind, told, seconds), (other_kind, other, other_seconds) = results
    assert kind == other_kind == "CheckpointError"
    assert told.splitlines()[0] == other.splitlines()[0]
    assert f"saving step 20 to {tmp_path}/work/checkpoints has not ended within 2 s: rank {victim}" in told
    assert 1.5 < seconds < 10 and 1.5 < other_seconds < 10
