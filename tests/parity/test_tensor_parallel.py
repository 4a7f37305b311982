"""Training by tensor parallelism, on a mesh of two by two and on one of one by two, against plain loops."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.engine.step_module import StepModule
from stratrun.hooks import Hook
from stratrun.strategies import TensorParallelStrategy
from stratrun.testing import Ranks
from tests.parity.transformers import (
    GATHERED_PLAN,
    SEQUENCE_PLAN,
    WHOLE_PLAN,
    Weighted,
    Writer,
    texts,
    writer,
)
from tests.problems import perceptron, points, trained

PLANS: dict[str, Any] = {"whole": WHOLE_PLAN, "sequence": SEQUENCE_PLAN, "gathered": GATHERED_PLAN}
TIED_PLAN = {**WHOLE_PLAN, "words": "row", "head": {"style": "column", "output": "whole"}}
SAMPLES, BATCH, ACCUMULATE, LIMIT = 22, 6, 2, 0.05
BOTH = {"max_norm": LIMIT, "value": 0.01}


def plain(epochs: int, clamp: float | None = None) -> dict[str, Tensor]:
    """One process that takes each global batch whole, in two updates an epoch."""
    model, (inputs, following) = writer(), texts(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    batches = [slice(start, start + BATCH) for start in range(0, SAMPLES, BATCH)]
    for _ in range(epochs):
        for window in (batches[:2], batches[2:]):
            for part in window:
                loss = cross_entropy(model(inputs[part]).flatten(0, 1), following[part].flatten())
                (loss / len(window)).backward()
            if clamp is not None:
                nn.utils.clip_grad_value_(model.parameters(), clamp)
            nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def whole(model: nn.Module) -> dict[str, Tensor]:
    named = model.state_dict().items()
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in named}


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], what: str) -> None:
    """To a millionth of the largest weight of each tensor."""
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        far = float((found[name] - value).abs().max() / value.abs().max())
        assert far < 1e-6, f"{what}: {name} by {far:.1e}"


def by_plan(plan: str, work_dir: str, *, epochs: int = 4, **options: Any) -> dict[str, Tensor]:
    runner = trained(
        writer(),
        strategy={"type": "tensor_parallel", "plan": PLANS[plan], "size": 2, **options.pop("strategy", {})},
        train_dataloader={"dataset": texts(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": epochs, "accumulate": ACCUMULATE},
        optimizer={"type": "SGD", "lr": 0.5, "momentum": 0.9},
        work_dir=work_dir,
        **{"clip_grad": {"max_norm": LIMIT}, **options},
    )
    assert (runner.iter, runner.step) == (4 * epochs, 2 * epochs)
    return whole(runner.model)


def in_eight_updates(work_dir: str) -> dict[str, Tensor]:
    return by_plan("sequence", work_dir)


def in_two_updates(work_dir: str) -> dict[str, Any]:
    # Blocks that end in a layer of the plan; gradients kept until a window closes.
    parts = {"blocks": ["blocks.*.down", "Attention"], "accumulate": "unsharded"}
    # Of what is not spread over samples, some is divided, and some is not.
    whole = {"ignore": ["head", "blocks.0.norm1", "blocks.1.attention.out"]}
    return {
        "gathered": by_plan("gathered", work_dir, epochs=1),
        "in parts": by_plan("whole", work_dir, epochs=1, strategy={"shard": parts}),
        "ignored": by_plan("sequence", work_dir, epochs=1, strategy={"shard": whole}, clip_grad=BOTH),
    }


def test_eight_updates_on_two_by_two_ranks_are_those_of_one_process(four_ranks: Ranks, tmp_path: Any) -> None:
    truth = plain(4)
    for found in four_ranks(in_eight_updates, str(tmp_path)):
        assert_same(found, truth, "sequence")


def test_whatever_is_divided_spread_or_whole_updates_are_those_of_one_process(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    for found in four_ranks(in_two_updates, str(tmp_path)):
        assert_same(found.pop("ignored"), plain(1, clamp=BOTH["value"]), "ignored")
        for what, made in found.items():
            assert_same(made, plain(1), what)


class Losses(Hook):
    """What is logged of each step."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.read: list[int] = []

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        self.means.append(runner.engine.mean({"loss": float(outputs["loss"])})["loss"])
        self.read += runner.engine.batch.positions


def job(strategy: Any, work_dir: str, precision: Any = "32-true") -> dict[str, Any]:
    """Dropout, weights of losses, and a last batch that is another size on each of two data ranks."""
    losses = Losses()
    runner = Runner(
        {"type": Weighted, "dropout": 0.25},
        strategy=strategy,
        precision=precision,
        train_dataloader={"dataset": texts(15), "global_batch_size": 4},
        train_cfg={"max_epochs": 2, "accumulate": 2},
        val_dataloader={"dataset": texts(7, seed=1), "batch_size": 2},
        val_evaluator={"type": "MeanMetric"},
        optimizer={"type": "SGD", "lr": 0.5},
        clip_grad={"max_norm": 0.3, "norm_type": 3.0},
        custom_hooks=[losses],
        default_hooks={"checkpoint": None},
        loggers=(),
        randomness={"seed": 3},
        work_dir=work_dir,
    )
    metrics = runner.train()
    runner.close()
    return {
        "weights": whole(runner.model),
        "metrics": metrics,
        "means": losses.means,
        "read": losses.read,
        "counts": (runner.iter, runner.step, runner.state.samples, runner.state.skipped),
    }


BY_SEQUENCE = {"type": "tensor_parallel", "plan": SEQUENCE_PLAN, "size": 2}


def low(strategy: Any, precision: Any, work_dir: str) -> tuple[dict[str, Tensor], int]:
    runner = trained(
        perceptron(),
        strategy=strategy,
        precision=precision,
        loss="cross_entropy",
        train_dataloader={"dataset": points(16), "global_batch_size": 4, "shuffle": False},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.5},
        clip_grad=LIMIT,
        work_dir=work_dir,
    )
    return whole(runner.model), runner.state.skipped


LOW = ("bf16-mixed", {"type": "16-mixed", "init_scale": 2.0**20})  # so high that it must come down first


def deferred() -> dict[str, Tensor]:
    """A model that was built without memory, filled from one that was not."""
    values = StepModule(writer(tied=True), None).state_dict()
    with torch.device("meta"):
        module = StepModule(Writer(tied=True), None)
    strategy = TensorParallelStrategy(plan=TIED_PLAN, size=2)
    device = torch.device("cpu")
    strategy.place(module, device, compute_dtype=torch.float32, initial=values.__getitem__)
    return whole(module.model)


def divided(work_dir: str) -> dict[str, Any]:
    strategy = {"type": "tensor_parallel", "plan": {"0": "column", "2": "row"}, "size": 2}
    return {
        "job": job(BY_SEQUENCE, work_dir),
        "low": [low(strategy, one, work_dir) for one in LOW],
        "deferred": deferred(),
    }


def replicated(work_dir: str) -> dict[str, Any]:
    return {"job": job("ddp", work_dir), "low": [low("ddp", one, work_dir) for one in LOW]}


def test_two_by_two_ranks_do_what_two_replicas_do_dropout_logs_and_metrics_included(
    four_ranks: Ranks, two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = two_ranks(replicated, str(tmp_path))
    for rank, both in enumerate(four_ranks(divided, str(tmp_path))):
        found, same = both["job"], truth[rank // 2]["job"]
        assert_same(found["weights"], same["weights"], "weights")
        assert found["metrics"] == pytest.approx(same["metrics"], rel=1e-5)
        assert found["means"] == pytest.approx(same["means"], rel=1e-5)
        assert (found["counts"], found["read"]) == (same["counts"], same["read"])
        for (made, skipped), (wanted, too) in zip(both["low"], truth[0]["low"], strict=True):
            torch.testing.assert_close(made, wanted, rtol=0.01, atol=0.005)
            assert skipped == too
        assert both["low"][1][1] > 0
        torch.testing.assert_close(both["deferred"], writer(tied=True).state_dict(), rtol=0, atol=0)


def test_without_a_second_dimension_two_ranks_do_what_one_process_does(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = job("single", str(tmp_path))
    for found in two_ranks(job, BY_SEQUENCE, str(tmp_path)):
        assert_same(found["weights"], truth["weights"], "weights")
        assert found["metrics"] == pytest.approx(truth["metrics"], rel=1e-5)
        assert found["means"] == pytest.approx(truth["means"], rel=1e-5)
        assert (found["counts"], found["read"]) == (truth["counts"], truth["read"])
