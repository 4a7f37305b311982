"""The listings of the document that the project began with, with only the name of the package replaced.

They are quoted here as they stand there; `listing` puts in the package. In the config, the dots that stand
for further settings are replaced by settings.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.evaluation import BaseMetric
from stratrun.hooks import Hook
from stratrun.registry import DATASETS, HOOKS, LOOPS, RUNNERS, Registry
from tests.problems import QUIET, perceptron, points
from tests.ranks import Ranks

LOOP = """
from mmengine.registry import LOOPS, HOOKS
from mmengine.runner import BaseLoop
from mmengine.hooks import Hook


# Customized validation loop
@LOOPS.register_module()
class CustomValLoop(BaseLoop):
    def __init__(self, runner, dataloader, evaluator, dataloader2):
        super().__init__(runner, dataloader, evaluator)
        self.dataloader2 = runner.build_dataloader(dataloader2)

    def run(self):
        self.runner.call_hooks('before_val_epoch')
        for idx, data_batch in enumerate(self.dataloader):
            self.runner.call_hooks(
                'before_val_iter', batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            self.runner.call_hooks(
                'after_val_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)
        metric = self.evaluator.evaluate()

        # add extra loop for validation purpose
        for idx, data_batch in enumerate(self.dataloader2):
            # add new hooks
            self.runner.call_hooks(
                'before_valloader2_iter', batch_idx=idx, data_batch=data_batch)
            self.run_iter(idx, data_batch)
            # add new hooks
            self.runner.call_hooks(
                'after_valloader2_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)
        metric2 = self.evaluator.evaluate()

        ...

        self.runner.call_hooks('after_val_epoch')


# Define a hook with extra hook positions
@HOOKS.register_module()
class CustomValHook(Hook):
    def before_valloader2_iter(self, batch_idx, data_batch):
        ...

    def after_valloader2_iter(self, batch_idx, data_batch, outputs):
        ...
"""

CONFIG = """
# Customized validation loop
val_cfg = dict(type='CustomValLoop', dataloader2=dict(dataset=dict(type='ValDataset2'), ...))
# Customized hook with extra hook position
custom_hooks = [dict(type='CustomValHook')]
"""

RUNNER = """
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

@RUNNERS.register_module()
class CustomRunner(Runner):

    def setup_env(self):
        ...
"""


def listing(text: str) -> dict[str, Any]:
    """The names that a listing defines."""
    found: dict[str, Any] = {"__name__": "listing"}
    exec(text.replace("mmengine", "stratrun"), found)
    return found


class ValDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Points with their numbers, from `first` on."""

    first, samples = 0, 7

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        inputs, targets = points(self.samples).tensors
        return inputs[index], targets[index], self.first + index


class ValDataset2(ValDataset):
    first, samples = 100, 5


class Numbers(BaseMetric):
    """Which samples were counted, evaluation by evaluation. Only the main process is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[list[int]] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_batch[2].tolist()

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        self.counted.append(results)
        return {"counted": len(results)}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def val_step(self, batch: Any) -> Tensor:
        scores: Tensor = self.net(batch[0])
        return scores


class Spy(Hook):
    """Notes the points of a validation."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def before_val_epoch(self) -> None:
        self.points.append("before_val_epoch")

    def after_val_iter(self, batch_idx: int) -> None:
        self.points.append(f"val {batch_idx}")

    def before_valloader2_iter(self, batch_idx: int, data_batch: Any) -> None:
        self.points.append(f"before second {batch_idx}")

    def after_valloader2_iter(self, batch_idx: int, outputs: Any) -> None:
        self.points.append(f"after second {batch_idx}")

    def after_val_epoch(self) -> None:
        self.points.append("after_val_epoch")


def forget(registry: Registry, *names: str) -> None:
    for name in names:
        registry._entries.pop(name, None)


def validated(work_dir: str, train: bool) -> dict[str, Any]:
    """Validate by the loop and the hook of the listing, alone or while training."""
    try:
        listing(LOOP)
        settings = listing(CONFIG.replace(", ...)", ", batch_size=2)"))
        DATASETS.register_module("ValDataset2")(ValDataset2)
        numbers, spy = Numbers(), Spy()
        custom_hooks = [*settings["custom_hooks"], spy]
        runner = Runner(
            Classifier(),
            train_dataloader={"dataset": ValDataset(), "batch_size": 2},
            train_cfg={"max_epochs": 2},
            optimizer={"type": "SGD", "lr": 0.1},
            val_dataloader={"dataset": ValDataset(), "batch_size": 2},
            val_evaluator=numbers,
            val_cfg=settings["val_cfg"],
            custom_hooks=custom_hooks,
            work_dir=work_dir,
            loggers=(),
        )
        if train:
            runner.train()
        else:
            runner.val()
        names = [type(hook).__name__ for hook in runner.hooks]
        return {"counted": numbers.counted, "points": spy.points, "hooks": names, "iter": runner.iter}
    finally:
        forget(LOOPS, "CustomValLoop")
        forget(HOOKS, "CustomValHook")
        forget(DATASETS, "ValDataset2")


FIRST, SECOND = list(range(7)), list(range(100, 105))
ALONE = [
    "before_val_epoch",
    *[f"val {i}" for i in range(4)],
    *[f"{when} second {i}" for i in range(3) for when in ("before", "after")],
    "after_val_epoch",
]


def test_the_loop_and_the_hook_validate_on_both_sets(tmp_path: Any) -> None:
    found = validated(str(tmp_path), train=False)
    assert found["counted"] == [FIRST, SECOND]
    assert found["points"] == ALONE
    assert "CustomValHook" in found["hooks"]


def test_the_loop_and_the_hook_validate_while_training(tmp_path: Any) -> None:
    found = validated(str(tmp_path), train=True)
    assert found["counted"] == [FIRST, SECOND] * 2
    assert found["points"] == ALONE * 2
    assert found["iter"] == 8


@pytest.mark.parametrize("train", [False, True])
def test_under_ddp_each_sample_of_both_sets_is_counted_once(
    train: bool, two_ranks: Ranks, tmp_path: Any
) -> None:
    times = 2 if train else 1
    first, second = two_ranks(validated, str(tmp_path), train)
    assert first["counted"] == [FIRST, SECOND] * times
    assert second["counted"] == []
    # 7 samples in batches of 2 x 2 are two batches a rank; 5 are two for the first, one for the second.
    for rank, batches in ((first, 2), (second, 1)):
        expected = [
            "before_val_epoch",
            "val 0",
            "val 1",
            *[f"{when} second {i}" for i in range(batches) for when in ("before", "after")],
            "after_val_epoch",
        ]
        assert rank["points"] == expected * times


def by_runner_type(work_dir: str) -> tuple[str, float, int]:
    try:
        listing(RUNNER)
        torch.set_num_threads(1)
        runner = Runner.from_cfg(
            {
                "runner_type": "CustomRunner",
                "model": {"type": "torch.nn.Linear", "in_features": 5, "out_features": 3},
                "loss": "cross_entropy",
                "train_dataloader": {"dataset": points(9), "batch_size": 2},
                "train_cfg": {"by_epoch": True, "max_epochs": 1},
                "optimizer": {"type": "SGD", "lr": 0.1},
                "val_dataloader": {"dataset": points(9), "batch_size": 2},
                "val_evaluator": {"type": "Accuracy"},
                # The runner of the listing leaves the environment alone, so this has no effect.
                "env_cfg": {"num_threads": 2},
                "work_dir": work_dir,
                **QUIET,
            }
        )
        metrics = runner.train()
        assert type(runner) is not Runner and isinstance(runner, Runner)
        return type(runner).__name__, metrics["accuracy"], torch.get_num_threads()
    finally:
        forget(RUNNERS, "CustomRunner")


def test_the_config_picks_the_runner_whose_setup_env_does_nothing(tmp_path: Any) -> None:
    before = torch.get_num_threads()
    try:
        name, accuracy, threads = by_runner_type(str(tmp_path))
    finally:
        torch.set_num_threads(before)
    assert name == "CustomRunner"
    assert 0 <= accuracy <= 1
    assert threads == 1


def test_the_config_picks_the_runner_under_ddp(two_ranks: Ranks, tmp_path: Any) -> None:
    first, second = two_ranks(by_runner_type, str(tmp_path))
    assert first == second
    assert first[0] == "CustomRunner" and first[2] == 1
