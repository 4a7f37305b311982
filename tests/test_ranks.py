"""The ranks that other tests run on, and the check that a test leaves nothing behind."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.leaks import Snapshot
from tests.rank_server import RankError
from tests.ranks import Ranks, RemoteTraceback

pytest_plugins = ["pytester"]


class OddError(Exception):
    """Cannot be unpickled: its constructor takes other arguments than it passes on."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def rank() -> int:
    return int(os.environ["RANK"])


def summed(start: float = 1.0) -> torch.Tensor:
    total = torch.tensor([start + rank()])
    dist.all_reduce(total)
    return total


def surroundings() -> dict[str, Any]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "COLOUR")
    return {
        "environ": {name: os.environ.get(name) for name in names},
        "cwd": os.getcwd(),
        "threads": torch.get_num_threads(),
        "joined": dist.is_initialized(),
        "pid": os.getpid(),
    }


def careless() -> None:
    os.environ["COLOUR"] = "red"
    os.chdir("/")
    torch.set_default_dtype(torch.float64)


def noisy() -> None:
    sys.stdout.write(f"out {rank()}\n")
    os.write(2, f"err {rank()}\n".encode())


def fail_on(which: int, error: Exception) -> None:
    noisy()
    if rank() == which:
        raise error
    dist.barrier()


def fail_oddly() -> None:
    raise OddError(1, 2)


def die_on(which: int) -> None:
    if rank() == which:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def die_with_a_child(which: int) -> None:
    if rank() == which:
        if os.fork() == 0:
            time.sleep(8)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def hang_on(which: int) -> None:
    if rank() == which:
        time.sleep(30)


def a_lambda() -> Any:
    return lambda: None


def warn() -> None:
    warnings.warn("careful", UserWarning, stacklevel=1)


def leave_group() -> None:
    dist.destroy_process_group()


def gloo_threads() -> int:
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(name.startswith("gloo") for name in names)


def make_groups(kept: int) -> int:
    groups: list[Any] = [dist.new_group(backend="gloo") for _ in range(kept)]
    groups.append(groups)
    return gloo_threads()


@pytest.fixture
def own_ranks(two_ranks: Ranks) -> Iterator[Ranks]:
    """A group that a test may spoil, so that the session's stays up."""
    ranks = Ranks(two_ranks.server, 2)
    yield ranks
    ranks.stop()


def test_every_rank_answers_in_order_and_collectives_work(two_ranks: Ranks, four_ranks: Ranks) -> None:
    assert two_ranks(rank) == [0, 1]
    assert four_ranks(rank) == [0, 1, 2, 3]
    assert [total.item() for total in two_ranks(summed, start=2.0)] == [5.0, 5.0]
    assert [total.item() for total in four_ranks(summed)] == [10.0] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_groups_that_a_call_leaves_are_ended_before_the_next(own_ranks: Ranks) -> None:
    before = own_ranks(gloo_threads)
    with_groups = own_ranks(make_groups, 5)
    assert all(many >= few + 5 for many, few in zip(with_groups, before, strict=True))
    assert own_ranks(gloo_threads) == before
    assert [total.item() for total in own_ranks(summed)] == [3.0, 3.0]


def test_ranks_stay_up_between_calls(two_ranks: Ranks) -> None:
    pids = [seen["pid"] for seen in two_ranks(surroundings)]
    assert [seen["pid"] for seen in two_ranks(surroundings)] == pids
    assert os.getpid() not in pids


def test_a_rank_sees_what_torchrun_would_set_and_the_world_of_the_test(
    two_ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOUR", "blue")
    seen = two_ranks(surroundings)[1]
    assert seen["environ"] == {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "COLOUR": "blue",
    }
    assert (seen["cwd"], seen["threads"], seen["joined"]) == (str(tmp_path), 1, True)


def test_bare_ranks_have_no_process_group(bare_ranks: Ranks) -> None:
    assert [seen["joined"] for seen in bare_ranks(surroundings)] == [False, False]


def test_what_a_call_changes_in_its_rank_is_put_back(two_ranks: Ranks) -> None:
    two_ranks(careless)
    assert two_ranks(surroundings)[0]["environ"]["COLOUR"] is None
    assert two_ranks(torch.get_default_dtype) == [torch.float32, torch.float32]


def test_output_is_kept_by_rank_and_for_the_last_call_only(two_ranks: Ranks) -> None:
    two_ranks(noisy)
    assert two_ranks.output == ["out 0\nerr 0\n", "out 1\nerr 1\n"]
    two_ranks(rank)
    assert two_ranks.output == ["", ""]


def test_an_error_in_one_rank_ends_the_call_though_the_other_waits(own_ranks: Ranks) -> None:
    before = own_ranks(surroundings)[0]["pid"]
    started = time.monotonic()
    with pytest.raises(ValueError, match="no good") as caught:
        own_ranks(fail_on, 1, ValueError("no good"))
    assert time.monotonic() - started < 5
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    told = str(caught.value.__cause__)
    assert "on rank 1 of 2" in told and "in fail_on" in told and "err 1" in told
    assert own_ranks(surroundings)[0]["pid"] != before
    assert own_ranks(rank) == [0, 1]


def test_an_error_that_cannot_travel_is_told(own_ranks: Ranks) -> None:
    with pytest.raises(RankError, match="OddError"):
        own_ranks(fail_oddly)
    with pytest.raises(RankError, match="a function cannot be sent back"):
        own_ranks(a_lambda)


def test_a_rank_that_dies_is_an_error_with_its_exit_code(own_ranks: Ranks) -> None:
    with pytest.raises(RankError, match="rank 1 of 2 died, exit code -9"):
        own_ranks(die_on, 1)
    assert own_ranks(rank) == [0, 1]


def test_a_dead_rank_is_noticed_though_its_loader_worker_lives(own_ranks: Ranks) -> None:
    started = time.monotonic()
    with pytest.raises(RankError, match="rank 0 of 2 died"):
        own_ranks(die_with_a_child, 0)
    assert time.monotonic() - started < 5


def test_a_rank_that_hangs_is_an_error_that_shows_where(own_ranks: Ranks) -> None:
    own_ranks(rank)
    own_ranks.limit = 0.5
    with pytest.raises(RankError, match=r"rank 0 of 2: no answer in 0\.5 s") as caught:
        own_ranks(hang_on, 0)
    assert "in hang_on" in str(caught.value)


def test_a_group_whose_process_group_was_destroyed_is_replaced(own_ranks: Ranks) -> None:
    own_ranks(leave_group)
    assert [seen["joined"] for seen in own_ranks(surroundings)] == [True, True]


def test_warnings_are_errors_in_ranks_unless_the_test_says_otherwise(own_ranks: Ranks) -> None:
    with pytest.raises(UserWarning, match="careful"):
        own_ranks(warn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert own_ranks(warn) == [None, None]


def test_a_local_function_is_refused_with_a_reason(two_ranks: Ranks) -> None:
    with pytest.raises(TypeError, match="give a module-level function"):
        two_ranks(lambda: None)
    assert two_ranks(rank) == [0, 1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("os.environ['COLOUR'] = 'red'", "environment variable COLOUR"),
        ("os.chdir('/')", "cwd"),
        ("torch.set_default_dtype(torch.float64)", "default dtype"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch threads"),
        ("torch.use_deterministic_algorithms(True)", "torch deterministic"),
        ("torch.set_grad_enabled(False)", "torch grad"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "handler of signal"),
        ("dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)", "process group"),
    ],
)
def test_a_changed_process_is_noticed_and_mended(change: str, told: str) -> None:
    before = Snapshot.take()
    exec(change, {"os": os, "torch": torch, "signal": signal, "dist": dist})
    changes = before.changes()
    before.restore()
    assert len(changes) == 1 and told in changes[0]
    assert before.changes() == []


def test_a_thread_that_still_runs_is_noticed() -> None:
    before = Snapshot.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="late")
    thread.start()
    changes = before.changes()
    end.set()
    thread.join()
    assert changes == ["thread 'late' still runs"]


def test_a_test_that_leaves_a_change_fails(pytester: pytest.Pytester) -> None:
    conftest = Path(__file__).with_name("conftest.py")
    pytester.makeconftest(conftest.read_text())
    pytester.makepyfile("import os\ndef test_leaves():\n    os.environ['COLOUR'] = 'red'\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*environment variable COLOUR: None became 'red'"])
