"""Nothing is built before a job needs it: what is not needed here fails when it is built or touched."""

import os
import random
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.errors import ConfigError
from stratrun.evaluation import BaseMetric
from stratrun.hooks import Hook
from stratrun.runner import BaseLoop
from tests.problems import perceptron, points
from tests.ranks import Ranks


class Exploded(AssertionError):
    pass


class Bomb:
    """Fails when it is made, by whichever job made it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise Exploded(type(self).__name__)


class BombModel(Bomb, nn.Module):
    pass


class BombData(Bomb, Dataset[Any]):
    pass


class BombOptimizer(Bomb, torch.optim.SGD):
    pass


class BombHook(Bomb, Hook):
    pass


class BombMetric(Bomb, BaseMetric):
    """A metric."""

    def process(self, data_batch: Any, data_samples: Any) -> None: ...

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {}


class BombLoop(Bomb, BaseLoop):
    def run(self) -> None: ...


def bomb(*args: Any) -> NoReturn:
    raise Exploded("called")


class UntouchableData(Dataset[Tensor]):
    """May be handed around, but neither asked for its length nor read."""

    def __len__(self) -> int:
        raise Exploded("asked for its length")

    def __getitem__(self, index: int) -> Tensor:
        raise Exploded("read")


BOMBS: dict[str, Any] = {
    "train_dataloader": {"dataset": {"type": BombData}, "batch_size": 4},
    "val_dataloader": {"dataset": {"type": BombData}, "batch_size": 4},
    "test_dataloader": {"dataset": {"type": BombData}, "batch_size": 4},
    "predict_dataloader": {"dataset": {"type": BombData}, "batch_size": 4},
    "train_cfg": {"type": BombLoop},
    "val_cfg": {"type": BombLoop},
    "test_cfg": {"type": BombLoop},
    "predict_cfg": {"type": BombLoop},
    "val_evaluator": {"type": BombMetric},
    "test_evaluator": {"type": BombMetric},
    "optimizer": {"type": BombOptimizer, "lr": 0.1},
    "param_scheduler": bomb,
    "loggers": (),
}


def parts(job: str) -> dict[str, Any]:
    """What one job needs, in working order; everything else would explode."""
    form = {**BOMBS, f"{job}_dataloader": {"dataset": points(8), "batch_size": 4}, f"{job}_cfg": {}}
    if job in ("val", "test"):
        form[f"{job}_evaluator"] = {"type": "Accuracy"}
    return form


def test_a_runner_builds_nothing_and_touches_neither_disk_nor_generators_nor_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    Runner(
        {"type": BombModel},
        **BOMBS,
        custom_hooks=[{"type": BombHook}],
        default_hooks={"timer": {"type": BombHook}},
        loss={"type": BombModel},
        strategy={"type": Bomb},
        accelerator={"type": Bomb},
        precision={"type": Bomb},
        work_dir=str(tmp_path / "work"),
        load_from=str(tmp_path / "nothing.pt"),
        resume=True,
        randomness={"seed": 1, "deterministic": True},
        env_cfg={"num_threads": 7},
    )
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.get_num_threads()) == before[1:]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not dist.is_initialized()


def test_a_runner_of_objects_reads_none_of_them() -> None:
    Runner(
        perceptron(),
        train_dataloader=UntouchableData(),
        val_dataloader={"dataset": UntouchableData(), "batch_size": 2},
        test_dataloader=bomb,
        optimizer=bomb,
        param_scheduler=bomb,
    )


def test_the_bombs_are_live(tmp_path: Path) -> None:
    with pytest.raises(Exploded, match="BombData"):
        Runner(perceptron(), **{**BOMBS, "test_cfg": {}}, work_dir=str(tmp_path)).test()
    with pytest.raises(Exploded, match="BombModel"):
        Runner({"type": BombModel}, **parts("test"), work_dir=str(tmp_path)).test()
    working = {**parts("train"), "train_cfg": {"max_epochs": 1}, "val_dataloader": None}
    working |= {"val_cfg": None, "val_evaluator": None}
    with pytest.raises(Exploded, match="BombOptimizer"):
        Runner(perceptron(), **working, loss="cross_entropy", work_dir=str(tmp_path)).train()
    working["optimizer"] = {"type": "SGD", "lr": 0.1}
    with pytest.raises(Exploded, match="called"):
        Runner(perceptron(), **working, loss="cross_entropy", work_dir=str(tmp_path)).train()


def run_job(job: str, work_dir: str) -> Any:
    runner = Runner(perceptron(), **parts(job), loss="cross_entropy", work_dir=work_dir)
    result = getattr(runner, job)()
    assert runner.train_dataloader is None
    return len(result) if job == "predict" else sorted(result)


@pytest.mark.parametrize(("job", "result"), [("val", ["accuracy"]), ("test", ["accuracy"]), ("predict", 8)])
def test_a_job_builds_its_own_parts_alone(job: str, result: Any, two_ranks: Ranks, tmp_path: Path) -> None:
    assert run_job(job, str(tmp_path)) == result
    assert two_ranks(run_job, job, str(tmp_path)) == [result, result]


def test_training_without_validation_builds_nothing_of_other_jobs(tmp_path: Path) -> None:
    form = {**parts("train"), "train_cfg": {"max_epochs": 1}, "optimizer": {"type": "SGD", "lr": 0.1}}
    form |= {"param_scheduler": None, "val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    runner = Runner(perceptron(), **form, loss="cross_entropy", work_dir=str(tmp_path))
    runner.train()
    assert runner.iter == 2


def test_training_with_validation_builds_nothing_of_test_and_predict(tmp_path: Path) -> None:
    form = {**parts("train"), "train_cfg": {"max_epochs": 1}, "optimizer": {"type": "SGD", "lr": 0.1}}
    form |= {"param_scheduler": None, "val_dataloader": {"dataset": points(8), "batch_size": 4}}
    form |= {"val_cfg": {}, "val_evaluator": {"type": "Accuracy"}}
    runner = Runner(perceptron(), **form, loss="cross_entropy", work_dir=str(tmp_path))
    assert list(runner.train()) == ["accuracy"]


def test_what_is_wrong_in_a_form_is_refused_before_anything_of_the_job_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    form = {**BOMBS, "train_cfg": {"max_epochs": 1}, "optimizer": {"type": "SGD", "learning_rate": 0.1}}
    form |= {"param_scheduler": None, "val_dataloader": None, "val_cfg": None, "val_evaluator": None}
    with pytest.raises(ConfigError, match="learning_rate"):
        Runner({"type": BombModel}, **form).train()
    assert os.listdir(tmp_path) == []


def test_jobs_of_one_runner_share_the_model_and_build_it_once(tmp_path: Path) -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(perceptron())
        return made[-1]

    loader = {"dataset": points(8), "batch_size": 4}
    runner = Runner(
        make,
        loss="cross_entropy",
        train_dataloader=loader,
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        test_dataloader=loader,
        test_evaluator={"type": "Accuracy"},
        predict_dataloader=loader,
        loggers=(),
        work_dir=str(tmp_path),
    )
    runner.train()
    runner.test()
    runner.predict()
    assert len(made) == 1
    assert runner.model is made[0]
