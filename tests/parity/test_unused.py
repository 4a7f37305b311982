"""Parameters that a training step leaves out: told by their names, on all ranks, before any waits."""

import logging
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stratrun.errors import ModelError, StratrunError
from stratrun.hooks import FreezeHook, MicroBatchHook
from stratrun.loops import EpochBasedTrainLoop
from stratrun.strategies import unused
from tests.problems import CLASSES, FEATURES, perceptron, points, trained
from tests.ranks import Ranks

PARTS = {part: {"type": "SGD", "lr": 0.1, "params": part} for part in ("stem", "heads")}
DDP_LOOKS = {"type": "ddp", "find_unused_parameters": True}


class Told(logging.Handler):
    """What is logged, as lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Branches(nn.Module):
    """A classifier with heads that do not always count; which do is a function of the call and the rank."""

    def __init__(self, heads: int, used: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(FEATURES, CLASSES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, CLASSES, bias=False) for _ in range(heads))
        self.used = used
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        names = {"calls": self.calls, "rank": int(os.environ.get("RANK", "0"))}
        outputs: Tensor = self.stem(inputs)
        if eval(self.used, names):
            outputs = outputs + sum(head(inputs) for head in self.heads)
        return outputs


def form(work_dir: Path | str, **options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(24), "global_batch_size": 4, "shuffle": False},
        "train_cfg": {"max_epochs": 1},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "work_dir": str(work_dir),
        **options,
    }


def outcome(model: nn.Module, work_dir: Path | str, **options: Any) -> tuple[list[str], str, str]:
    """What is logged, the kind of error, and what it says."""
    told = Told()
    logging.getLogger("stratrun").addHandler(told)
    try:
        trained(model, **form(work_dir, **options))
    except (StratrunError, RuntimeError) as error:
        notes = getattr(error, "__notes__", ())
        return told.lines, type(error).__name__, "\n".join([str(error), *notes])
    finally:
        logging.getLogger("stratrun").removeHandler(told)
    return told.lines, "", ""


def run(work_dir: str, used: str, heads: int = 2, **options: Any) -> tuple[list[str], str, str]:
    return outcome(Branches(heads, used), work_dir, **options)


def test_ddp_ends_before_the_first_exchange_and_names_what_is_left_out(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    for lines, kind, text in two_ranks(run, str(tmp_path), "False", heads=12, strategy="ddp"):
        assert (lines, kind) == ([], ModelError.__name__)
        names = ", ".join(f"heads.{number}.weight" for number in range(10))
        assert f"12 parameters have no part in the loss of a training step: {names} and 2 more" in text
        assert "requires_grad_(False)" in text and "find_unused_parameters=True" in text


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"compile": {"step": True}}])
def test_what_one_rank_leaves_out_ends_all_of_them(
    options: dict[str, Any], two_ranks: Ranks, tmp_path: Path
) -> None:
    if "compile" in options:
        options["compile"] = {**options["compile"], "backend": "aot_eager"}
    for _, kind, text in two_ranks(run, str(tmp_path), "rank == 0", strategy="ddp", **options):
        assert kind == ModelError.__name__
        assert "2 parameters" in text and "on rank 1 of 2: heads.0.weight, heads.1.weight" in text


@pytest.mark.parametrize(
    ("used", "ends"), [("calls % 3 == 0", False), ("calls % 3 == 1", True), ("calls % 3 == 2", True)]
)
def test_of_an_accumulation_window_the_backward_that_exchanges_counts(
    used: str, ends: bool, two_ranks: Ranks, tmp_path: Path
) -> None:
    options = {"strategy": "ddp", "train_cfg": {"max_epochs": 1, "accumulate": 3}}
    for lines, kind, _ in two_ranks(run, str(tmp_path), used, **options):
        assert (lines, kind) == ([], ModelError.__name__ if ends else "")


def test_gradients_of_earlier_batches_of_a_window_are_learnt_from(tmp_path: Path) -> None:
    accumulating = {"max_epochs": 1, "accumulate": 3}
    for used in ("calls % 3 == 1", "calls % 3 == 0"):
        assert run(str(tmp_path), used, train_cfg=accumulating) == ([], "", "")
    (line,), _, _ = run(str(tmp_path), "calls > 3", train_cfg=accumulating)
    assert "heads.0.weight, heads.1.weight" in line


@pytest.mark.parametrize("trials", [0, 2, 20])
def test_parts_of_a_batch_are_looked_at_as_they_are_exchanged(
    trials: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    options = {"strategy": "ddp", "custom_hooks": [MicroBatchHook(parts=2, trials=trials)]}
    assert two_ranks(run, str(tmp_path), "True", **options) == [([], "", "")] * 2
    # While steps are tried out each rank computes by itself, and none waits.
    for _, kind, _ in two_ranks(run, str(tmp_path), "False", **options):
        assert kind == (ModelError.__name__ if trials < 6 else "")


def test_where_nobody_waits_it_is_told_once_and_trained_all_the_same(tmp_path: Path) -> None:
    lines, kind, _ = run(str(tmp_path), "False", train_cfg={"max_epochs": 2})
    assert kind == ""
    (line,) = lines
    assert "heads.0.weight, heads.1.weight" in line and "learns nothing" in line


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp", {"type": "ddp", "static_graph": True}])
def test_spread_weights_and_static_graphs_leave_out_what_they_like_and_the_main_rank_tells(
    strategy: Any, two_ranks: Ranks, tmp_path: Path
) -> None:
    main, other = two_ranks(run, str(tmp_path), "False", strategy=strategy)
    assert main[1:] == other[1:] == ("", "") and other[0] == []
    assert len(main[0]) == 1 and "heads.0.weight, heads.1.weight in the" in main[0][0]
    assert two_ranks(run, str(tmp_path), "True", strategy=strategy) == [([], "", "")] * 2


def test_looking_for_what_is_never_there_is_said_to_be_needless(two_ranks: Ranks, tmp_path: Path) -> None:
    (main, _, _), (other, _, _) = two_ranks(run, str(tmp_path), "True", strategy=DDP_LOOKS)
    assert len(main) == 1 and "find_unused_parameters=True walks the graph" in main[0] and other == []


@pytest.mark.parametrize(
    ("used", "options"),
    [
        ("rank == 0", {"strategy": DDP_LOOKS}),
        ("calls != 3 or rank == 0", {"strategy": DDP_LOOKS}),
        ("True", {"strategy": "ddp", "randomness": {"seed": 0, "deterministic": True}}),
        ("True", {"strategy": "ddp", "optimizer": PARTS}),
    ],
)
def test_looking_that_is_needed_or_was_not_the_users_wish_is_not_spoken_of(
    used: str, options: dict[str, Any], two_ranks: Ranks, tmp_path: Path
) -> None:
    assert two_ranks(run, str(tmp_path), used, **options) == [([], "", "")] * 2


def test_deterministic_mode_looks_and_so_tells_of_what_no_rank_reaches(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    options = {"strategy": "ddp", "randomness": {"seed": 0, "deterministic": True}}
    (main, kind, _), _ = two_ranks(run, str(tmp_path), "False", **options)
    assert kind == "" and len(main) == 1 and "heads.0.weight" in main[0]


class Hidden(nn.Module):
    """A part whose backward pass is within another one, where its graph is not seen."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.model = perceptron()
        self.extra = nn.Linear(CLASSES, CLASSES)
        self.used = used

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.requires_grad_()
        outputs: Tensor = checkpoint(self.model, inputs, use_reentrant=True)
        return self.extra(outputs) if self.used else outputs


def hidden(work_dir: str, used: bool) -> tuple[list[str], str, str]:
    return outcome(Hidden(used), work_dir, strategy="ddp")


def test_what_cannot_be_seen_is_not_taken_for_left_out(two_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(hidden, str(tmp_path), True) == [([], "", "")] * 2
    for _, kind, text in two_ranks(hidden, str(tmp_path), False):
        assert kind == "RuntimeError"
        assert "a backward pass did not reach extra.weight, extra.bias; use them" in text


def thaws(work_dir: str, used: str, strategy: str) -> tuple[list[str], str, str]:
    options = {"strategy": strategy, "train_cfg": {"max_epochs": 2}}
    return run(work_dir, used, custom_hooks=[FreezeHook("heads", until=1)], **options)


def test_frozen_parts_are_not_missed_until_they_are_thawed(two_ranks: Ranks, tmp_path: Path) -> None:
    (line,), _, _ = thaws(str(tmp_path), "False", "single")
    assert "heads.0.weight, heads.1.weight" in line
    assert thaws(str(tmp_path), "True", "single") == ([], "", "")
    for _, kind, text in two_ranks(thaws, str(tmp_path), "False", "ddp"):
        assert kind == ModelError.__name__ and "heads.0.weight" in text
    assert two_ranks(thaws, str(tmp_path), "True", "ddp") == [([], "", "")] * 2


def test_of_several_optimizers_each_has_its_parameters_looked_at(tmp_path: Path) -> None:
    lines, _, _ = run(str(tmp_path), "False", optimizer=PARTS)
    assert len(lines) == 1 and "heads.0.weight, heads.1.weight" in lines[0]


def walks(work_dir: str, **options: Any) -> int:
    """How often the graph of a loss is walked, in six updates."""
    with mock.patch.object(unused, "missed_by", wraps=unused.missed_by) as missed_by:
        trained(Branches(2, "True"), **form(work_dir, **options))
    return missed_by.call_count


@pytest.mark.parametrize(("strategy", "count"), [("ddp", 1), (DDP_LOOKS, unused.STEPS)])
def test_only_the_first_steps_are_looked_at(
    strategy: Any, count: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    assert two_ranks(walks, str(tmp_path), strategy=strategy) == [count] * 2
    accumulating = {"max_epochs": 2, "accumulate": 2}
    assert two_ranks(walks, str(tmp_path), strategy=strategy, train_cfg=accumulating) == [count] * 2


def test_after_the_first_update_the_step_is_the_bare_one_again(tmp_path: Path) -> None:
    runner = trained(Branches(2, "True"), **form(tmp_path))
    assert "step" not in vars(runner.engine._updates)


class Parts(EpochBasedTrainLoop):
    """A recipe of its own, in parts of a step."""

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        engine = self.runner.engine
        outputs = engine.forward(data_batch, "train")
        engine.backward(outputs["loss"])
        engine.step()
        return outputs


class TrainedInParts(Branches):
    def train_step(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self(batch[0]), batch[1])}


def in_parts(work_dir: str, used: str, strategy: str) -> tuple[list[str], str, str]:
    loop = {"type": Parts, "max_epochs": 1}
    return outcome(TrainedInParts(2, used), work_dir, strategy=strategy, train_cfg=loop, loss=None)


def test_a_loop_that_makes_steps_in_parts_is_told_the_names_too(two_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(in_parts, str(tmp_path), "True", "ddp") == [([], "", "")] * 2
    for _, kind, text in two_ranks(in_parts, str(tmp_path), "False", "ddp"):
        assert kind == "RuntimeError"
        assert "a backward pass did not reach heads.0.weight, heads.1.weight; use them" in text
    (line,), kind, _ = in_parts(str(tmp_path), "False", "single")
    assert kind == "" and "heads.0.weight, heads.1.weight" in line


class Split(nn.Module):
    """A classifier that ranks compute together, and a part of theirs that does not count."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.net = perceptron()
        self.extra = nn.Sequential(nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES))
        self.used = used

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(inputs)
        return outputs + self.extra(inputs) if self.used else outputs


def split(work_dir: str, used: bool) -> tuple[list[str], str, str]:
    plan = {"net.0": "column", "net.2": "row", "extra.0": "column", "extra.1": "row"}
    return outcome(Split(used), work_dir, strategy={"type": "tensor_parallel", "size": 2, "plan": plan})


def test_ranks_that_share_a_model_tell_it_once(two_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(split, str(tmp_path), True) == [([], "", "")] * 2
    main, other = two_ranks(split, str(tmp_path), False)
    assert other == ([], "", "") and len(main[0]) == 1
    assert "extra.0.weight, extra.0.bias, extra.1.weight, extra.1.bias in the" in main[0][0]
