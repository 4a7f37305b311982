"""Averages of weights over a resume: those of the run that was never stopped, to the bit."""

from pathlib import Path
from typing import Any

from stratrun.hooks import EMAHook, Hook
from tests.problems import perceptron, trained
from tests.ranks import Ranks
from tests.unit.test_ema import form, same


class Stop(Hook):
    """Ends training after an iteration."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.request("stop", agreed=True)


class Early(Hook):
    """Saves before the averages have followed."""

    priority = 10

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()


def ended(work_dir: str, *hooks: Hook, **options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """What the averages and the metrics are in the end."""
    ema = EMAHook(decay=0.9, warmup=True, begin=1)
    runner = trained(
        perceptron(),
        **form(work_dir, [ema, *hooks], default_hooks={"checkpoint": {"keep_last": None}}, **options),
    )
    return ema.state_dict(), runner.metrics


def assert_resumes(work_dir: str) -> None:
    truth, metrics = ended(f"{work_dir}/whole")
    for at in (1, 3, 5, 9):
        ended(f"{work_dir}/broken-{at}", Stop(at))
        found, again = ended(f"{work_dir}/broken-{at}", resume=True)
        assert same(found["averages"], truth["averages"]) and found["updates"] == truth["updates"] == 5
        assert again == metrics
    ended(f"{work_dir}/early", Early(6), Stop(6), train_cfg={"max_epochs": 2, "accumulate": 3})
    path = f"{work_dir}/early/checkpoints/step-00000006"
    found, _ = ended(f"{work_dir}/late", resume=path)
    assert same(found["averages"], truth["averages"]) and found["updates"] == 5


def test_a_resumed_run_has_the_averages_of_the_uninterrupted_one(tmp_path: Path) -> None:
    assert_resumes(str(tmp_path))


def test_a_resumed_run_of_two_ranks_has_the_averages_of_the_uninterrupted_one(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_resumes, str(tmp_path))
