"""MMEngine."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional

from peers.task import LEARNING_RATE, LOG_EVERY, Task, Variant

OFF: dict[str, Any] = dict.fromkeys(
    ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
)
LOGGING: dict[str, Any] = {"logger": {"type": "LoggerHook", "interval": LOG_EVERY}, "checkpoint": None}


class Batches(list[tuple[Tensor, Tensor]]):
    """Batches that are ready, with what a runner looks for on a loader."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__(batches)
        self.dataset = range(sum(len(targets) for _, targets in batches))


class Model(BaseModel):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor, targets: Tensor, mode: str = "tensor") -> Any:
        outputs = self.net(inputs)
        if mode == "loss":
            return {"loss": functional.cross_entropy(outputs, targets)}
        return (outputs, targets)


class Accuracy(BaseMetric):
    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        outputs, targets = data_samples
        self.results.append((int((outputs.argmax(1) == targets).sum()), len(targets)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        return {"accuracy": sum(right for right, _ in results) / sum(count for _, count in results)}


def _runner(task: Task, hooks: dict[str, Any], **options: Any) -> Any:
    return Runner(
        model=Model(task.model),
        work_dir=task.folder,
        default_hooks=hooks,
        log_level="INFO" if hooks.get("logger") else "WARNING",
        experiment_name=uuid4().hex,  # instances are kept by name
        **options,
    )


def _train(task: Task, hooks: dict[str, Any], **options: Any) -> None:
    _runner(
        task,
        hooks,
        train_dataloader=Batches(task.batches),
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": LEARNING_RATE}},
        **options,
    ).train()


def train(task: Task) -> None:
    _train(task, OFF)


def train_and_log(task: Task) -> None:
    backends = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}]
    _train(task, LOGGING, visualizer={"type": "Visualizer", "vis_backends": backends})


def _evaluate(task: Task, hooks: dict[str, Any]) -> float:
    runner = _runner(
        task, hooks, test_dataloader=Batches(task.batches), test_cfg={}, test_evaluator=Accuracy()
    )
    return float(runner.test()["accuracy"])


VARIANTS = (
    Variant("MMEngine, hooks off", "train", False, train),
    Variant("MMEngine, default hooks + TensorBoard", "train", True, train_and_log),
    Variant("MMEngine, hooks off", "evaluate", False, lambda task: _evaluate(task, OFF)),
    Variant("MMEngine, default hooks", "evaluate", True, lambda task: _evaluate(task, LOGGING)),
)
