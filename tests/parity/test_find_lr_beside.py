"""A range test that is broken off, or beside a run that is stopped and resumed: it leaves no trace."""

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import TensorDataset

from stratrun.hooks import EMAHook, Hook, MicroBatchHook
from tests.parity.test_exact_state import TWO, same
from tests.parity.test_find_lr import BATCH, Net, Plain, alone, local, runner_of, separable, state_of
from tests.parity.test_other_ranks import Stop
from tests.ranks import Ranks


class Late(TensorDataset):
    """Fails, or is interrupted, at its so manieth sample of a process."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__(*separable().tensors)
        self.left, self.error = at, error

    def __getitem__(self, index: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error("here")
        return super().__getitem__(index)


def broken(error: str, strategy: str = "auto") -> Any:
    kind = {"KeyboardInterrupt": KeyboardInterrupt, "OSError": OSError}.get(error)
    states = []
    for find in (False, True):
        data = Late(60 if find and kind else 0, kind or OSError)
        runner = runner_of(
            train_dataloader={"dataset": data, "global_batch_size": BATCH, "drop_last": True},
            strategy=strategy,
        )
        if find:
            with pytest.raises(kind or OSError):
                runner.find_lr(iters=40)
        runner.train()
        states.append(local(state_of(runner)))
        runner.close()
    return same(*states)


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "OSError"])
def test_what_breaks_it_off_leaves_no_trace_of_it(error: str) -> None:
    assert broken(error)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_so_it_is_on_two_ranks(strategy: str, two_ranks: Ranks) -> None:
    assert all(two_ranks(broken, "OSError", strategy))


# Where the order in which gradients are exchanged, learnt from the first step, shows in the last digits.
def test_so_it_is_on_four_ranks(four_ranks: Ranks) -> None:
    assert all(four_ranks(broken, "OSError", "ddp"))


# Beside a resume ------------------------------------------------------------------------------------------


def resumed(work_dir: str, **options: Any) -> bool:
    def run(folder: str, *hooks: Hook, find: bool = False, **more: Any) -> Any:
        runner = runner_of(
            f"{work_dir}/{folder}",
            default_hooks={"checkpoint": {"keep_last": None}},
            custom_hooks=[*hooks, EMAHook(decay=0.9)],
            model=Net(forgets=False),
            **options,
            **more,
        )
        if find:
            runner.find_lr(iters=15)
        runner.train()
        state = local(state_of(runner))
        runner.close()
        return {key: state[key] for key in state.keys() - {"scratch", "calls"}}

    truth = run("whole")
    run("broken", Stop(5), find=True)
    return same(run("broken", find=True, resume=True), truth)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_run_that_is_resumed_after_it_comes_to_the_same_bits(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    start = alone if strategy == "single" else two_ranks
    assert all(start(resumed, str(tmp_path), strategy=strategy))


def test_a_stopped_training_goes_on_after_it_to_the_same_bits() -> None:
    def run(find: bool) -> Any:
        runner = runner_of(train_cfg={"max_epochs": 3}, custom_hooks=[Stop(10)])
        runner.train()
        if find:
            runner.find_lr(iters=20)
        runner.train()
        return local(state_of(runner))

    assert same(run(True), run(False))


def test_several_optimizers_have_one_moved_and_the_other_kept() -> None:
    two = {"lower": {**TWO["lower"], "params": "net.0"}, "upper": {**TWO["upper"], "params": "net.4"}}

    def run(find: bool) -> Any:
        runner = runner_of(optimizer=two, param_scheduler=None)
        if find:
            found = runner.find_lr(iters=20, optimizer="upper")
            assert found.lrs[0] == 1e-7
        runner.train()
        return local(state_of(runner))

    assert same(run(True), run(False))


def test_steps_in_parts_are_tested_in_parts_and_begin_anew_after_it() -> None:
    def run(find: bool) -> Any:
        hook = MicroBatchHook(parts=2, trials=3, find=True)
        runner = runner_of(model=Plain(), custom_hooks=[hook])
        if find:
            runner.find_lr(iters=12)
            assert hook.state_dict() == {"parts": 2, "tried": 0, "found": None}
        runner.train()
        assert hook.state_dict()["found"] == BATCH
        return local(state_of(runner))

    assert same(run(True), run(False))
