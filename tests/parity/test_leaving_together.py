"""A signal in an evaluation where each forward pass waits for all ranks: they leave after the same batch."""

import os
import signal
from typing import Any

import pytest

from stratrun.errors import Stopped
from stratrun.hooks import Hook
from tests.feeds import Numbers
from tests.parity.test_in_step_built_in import STRATEGIES, Layered
from tests.parity.waiting import chained, run
from tests.ranks import Ranks


class Strike(Hook):
    """Sends a signal to the last rank alone, after so many batches of it."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.batches = 0
        self.left = False

    def after_val_iter(self, runner: Any) -> None:
        self.batches += 1
        if self.batches == self.after and runner.rank == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    after_predict_iter = after_val_iter

    def on_break_off(self) -> None:
        self.left = True


FSDP, HSDP, TENSOR = STRATEGIES
# Where a rank has no batch any more there is nothing to wait for: the pass is finished.
RUNS = [(FSDP, "val", 800, 3), (HSDP, "predict", 800, 5), (TENSOR, "val", 800, 4), (FSDP, "val", 9, 1)]


def struck(work_dir: str) -> list[Any]:
    found = []
    for strategy, job, samples, after in RUNS:
        hook = Strike(after)
        spec = {"dataset": Numbers(samples), "batch_size": 2}
        options = {"val_dataloader": spec, "predict_dataloader": spec, "strategy": strategy}
        runner = run(model=Layered(), work_dir=work_dir, custom_hooks=[hook], **options)
        with pytest.raises(Stopped) as caught:
            getattr(runner, job)()
        found.append((caught.value.code, hook.left, hook.batches, runner.metrics))
    return found


def test_ranks_that_wait_for_each_other_leave_an_evaluation_after_the_same_batch_or_finish_it(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    *left, finished = zip(*four_ranks(struck, str(tmp_path)), strict=True)
    for told in left:
        assert [one[:2] for one in told] == [(143, True)] * 4
        assert len({one[2] for one in told}) == 1 and 3 <= told[0][2] < 80 and not told[0][3]
    assert [one[:2] for one in finished] == [(143, False)] * 4
    assert [one[3] for one in finished] == [chained(9)] * 4
