"""Averages that follow every so many updates, and decays that grow, by their formulas."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stratrun import ConfigError, Hook, Runner
from stratrun.checkpoint.export import export_weights
from stratrun.checkpoint.weights import read_weights
from stratrun.hooks import EMAHook
from tests.problems import perceptron, trained
from tests.ranks import Ranks
from tests.unit.test_ema import Trace, form, same

CFG = {"max_epochs": 2}  # 14 updates


class Stop(Hook):
    """Ends training after an iteration, as if from outside."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.state.agree("stop", "killed", urgent=True)


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        ({"interval": 3}, lambda n: 0.9),
        ({"interval": 2, "begin": 3}, lambda n: 0.9),
        ({"warmup": "inverse", "gamma": 4}, lambda n: min(0.9, n / (4 + n))),
        ({"warmup": "exponential", "gamma": 5}, lambda n: 0.9 * (1 - math.exp(-(1 + n) / 5))),
        ({"warmup": True, "interval": 4}, lambda n: min(0.9, (1 + n) / (10 + n))),
    ],
)
def test_averages_move_when_they_are_to_and_by_what_they_are_to(
    options: dict[str, Any], decay: Callable[[int], float], tmp_path: Path
) -> None:
    trace, ema = Trace(), EMAHook(decay=0.9, **options)
    trained(perceptron(), **form(tmp_path, [trace, ema], train_cfg=CFG))
    begin, interval = options.get("begin", 0), options.get("interval", 1)
    average = {name: value.double() for name, value in trace.trained[begin].items()}
    for n, step in enumerate(range(begin + interval, 15, interval), start=1):
        for name, value in trace.trained[step].items():
            average[name] = decay(n) * average[name] + (1 - decay(n)) * value
    found: dict[str, Tensor] = ema.state_dict()["averages"]
    truth = {name: value.float() for name, value in average.items()}
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


def assert_resumes_and_exports(strategy: str, work_dir: str) -> None:
    options = {"warmup": "inverse", "gamma": 4, "interval": 3}
    ends = {}
    for at in (None, 5, 9):
        hooks = [] if at is None else [Stop(at)]
        for resume in (False,) if at is None else (False, True):
            ema = EMAHook(decay=0.9, **options)
            given = form(f"{work_dir}/{at}", [ema, *([] if resume else hooks)], train_cfg=CFG)
            given |= {"strategy": strategy, "resume": resume, "default_hooks": {}}
            trained(perceptron(), **given)
        ends[at] = whole(ema.state_dict()["averages"])
    assert same(ends[5], ends[None]) and same(ends[9], ends[None])
    origin = {"path": f"{work_dir}/None", "weights": "ema"}
    runner = Runner(
        perceptron(), loggers=(), strategy=strategy, load_from=origin, **form(f"{work_dir}/v", [])
    )
    runner.val()
    assert same(whole(dict(runner.model.state_dict())), ends[None])
    if runner.rank == 0:
        export_weights(f"{work_dir}/None", f"{work_dir}/ema.safetensors", weights="ema")
        assert same(read_weights(f"{work_dir}/ema.safetensors"), ends[None])
    runner.engine.mean({"here": 0.0})
    runner.close()


def whole(state: dict[str, Any]) -> dict[str, Tensor]:
    return {n: v.full_tensor() if hasattr(v, "full_tensor") else v.clone() for n, v in state.items()}


def test_a_resumed_run_averages_the_same_updates_and_they_are_what_is_exported(tmp_path: Path) -> None:
    assert_resumes_and_exports("single", str(tmp_path))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_resume_load_and_export_the_same_averages(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(assert_resumes_and_exports, strategy, str(tmp_path))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"interval": 0}, "interval=0 must be a whole number of updates"),
        ({"warmup": "invers"}, "warmup='invers' is unknown; give True or False, or did you mean 'inverse'"),
        ({"gamma": 0}, "gamma=0 must be"),
        ({"buffers": "models"}, "buffers='models' is unknown; did you mean 'model'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        EMAHook(**options)
