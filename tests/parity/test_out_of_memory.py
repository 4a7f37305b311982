"""A step that runs out of memory is made in parts, with the gradient that it would have had."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from stratrun import Runner
from stratrun.distributed import Collectives
from stratrun.errors import ConfigError
from stratrun.hooks import Hook, MicroBatchHook
from tests.parity.test_other_ranks import Stop
from tests.problems import CLASSES, FEATURES, QUIET, points
from tests.ranks import Ranks

BATCH, ITERS = 12, 6
EVERYWHERE = 10**6


class Burst(torch.autograd.Function):
    """Runs out of memory on the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory on the way back")


class Hungry(nn.Module):
    """Has memory for `room` samples at once.

    It runs out in the middle of a forward pass or, with `back`, of a backward pass, when some of the
    gradients are there.
    """

    def __init__(
        self, room: int = EVERYWHERE, back: bool = False, weighted: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.drop = nn.Dropout(drop)
        self.register_buffer("calls", torch.zeros(1))
        self.room, self.back, self.weighted = room, back, weighted
        self.sizes: list[int] = []

    calls: Tensor

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        self.calls += 1
        hidden = self.drop(torch.tanh(self.first(inputs)))
        if len(inputs) > self.room:
            if not self.back:
                raise torch.OutOfMemoryError("no memory")
            hidden = Burst.apply(hidden)
        self.sizes.append(len(inputs))
        scores = self.last(hidden)
        losses = cross_entropy(scores, targets, reduction="none")
        correct = scores.detach().argmax(1) == targets
        told = {"correct": correct}
        if not self.weighted:
            return {"loss": losses.mean(), "accuracy": correct.float().mean(), **told}
        tokens = 1.0 + targets
        return {"loss": (losses * tokens).sum() / tokens.sum(), "weight": tokens.sum(), **told}


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Ends within a window, which nobody knows before."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(points(3 * BATCH))


class Outputs(Hook):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def after_train_iter(self, outputs: Any) -> None:
        shown = {name: value.tolist() for name, value in outputs.items()}
        self.seen.append(shown)


def run(strategy: Any = "auto", rooms: list[int] | None = None, **options: Any) -> dict[str, Any]:
    """Train; `rooms` is the room of each rank."""
    rank = int(os.environ.get("RANK", "0"))
    given = options.pop("model", {})
    model = Hungry(rooms[rank] if rooms else EVERYWHERE, **given)
    hook, outputs = options.pop("hook", None), Outputs()
    made = None if hook is None else MicroBatchHook(**hook)
    runner = Runner(
        model,
        **{
            **QUIET,
            "train_dataloader": {"dataset": points(100), "global_batch_size": BATCH},
            "train_cfg": {"by_epoch": False, "max_iters": ITERS},
            "optimizer": {"type": "AdamW", "lr": 0.02},
            "randomness": {"seed": 3},
            "clip_grad": 1.0,
            "strategy": strategy,
            **options,
            "custom_hooks": [outputs, *([made] if made else []), *options.get("custom_hooks", ())],
        },
    )
    runner.train()
    found = {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.detach().clone() for name, b in model.named_buffers()},
        "seen": outputs.seen,
        "sizes": model.sizes,
        "step": runner.step,
        "hook": None if made is None else made.state_dict(),
    }
    runner.close()
    return found


def assert_close(found: Any, truth: Any) -> None:
    """The same but for rounding, which AdamW may enlarge in its first updates."""
    for name, value in truth["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-5, atol=1e-5)
    for mine, other in zip(found["seen"], truth["seen"], strict=True):
        one = dict(mine)
        assert one.pop("correct") == other["correct"]
        assert one == pytest.approx({k: v for k, v in other.items() if k != "correct"}, rel=1e-4, abs=1e-5)


def assert_same(found: Any, truth: Any) -> None:
    for kind in ("weights", "buffers"):
        for name, value in truth[kind].items():
            assert torch.equal(found[kind][name], value), name
    assert found["seen"] == truth["seen"]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"model": {"weighted": True}},
    "in windows": {"train_cfg": {"by_epoch": False, "max_iters": ITERS, "accumulate": 4}},
    "of which one ends early": {
        "train_dataloader": {"dataset": Stream(), "global_batch_size": BATCH},
        "train_cfg": {"by_epoch": True, "max_epochs": 2, "accumulate": 2},
    },
    "weighted in windows": {
        "model": {"weighted": True},
        "train_cfg": {"by_epoch": False, "max_iters": ITERS, "accumulate": 4},
    },
    "scaled": {"precision": "16-mixed"},
}


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("way", WAYS)
def test_parts_come_to_the_gradient_of_the_whole_batch(way: str, back: bool) -> None:
    options = dict(WAYS[way])
    model = options.pop("model", {})
    truth = run(model=model, **options)
    found = run(model={**model, "back": back}, rooms=[5], hook={}, **options)
    assert found["hook"]["parts"] == 4
    if way != "scaled":  # 16 bits
        assert_close(found, truth)
    assert max(found["sizes"][3:]) == 3
    # Nothing is left of the steps that were given up: as if it had been 4 parts from the start.
    assert_same(found, run(model=model, hook={"parts": 4}, **options))


def test_draws_begin_anew_with_a_step_that_is_made_again() -> None:
    model = {"drop": 0.5}
    assert_same(run(model=model, rooms=[5], hook={}), run(model=model, hook={"parts": 4}))


def test_a_hook_that_finds_nothing_to_do_changes_nothing() -> None:
    for way in WAYS.values():
        assert_same(run(hook={}, **way), run(**way))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_one_rank_that_runs_out_of_memory_has_all_of_them_make_smaller_parts(
    way: str, back: bool, two_ranks: Ranks
) -> None:
    options = dict(WAYS[way])
    model = options.pop("model", {})
    truth = two_ranks(run, "ddp", model=model, **options)
    found = two_ranks(run, "ddp", [EVERYWHERE, 2], model={**model, "back": back}, hook={}, **options)
    for one, other in zip(found, truth, strict=True):
        assert one["hook"]["parts"] == 4
        if way != "scaled":
            assert_close(one, other)
    assert [max(one["sizes"][-8:]) for one in found] == [2, 2]
    assert all(torch.equal(found[0]["weights"][n], found[1]["weights"][n]) for n in found[0]["weights"])


def counted(trials: int | None, parts: int) -> dict[str, Any]:
    """A run, and how many exchanges of objects there were while steps were made."""
    count, plain = [0], Collectives.gather

    class Count(Hook):
        def before_train_epoch(self) -> None:
            def gather(self: Collectives, value: Any) -> Any:
                count[0] += 1
                return plain(self, value)

            Collectives.gather = gather  # type: ignore[method-assign]

        def after_train(self) -> None:
            Collectives.gather = plain  # type: ignore[method-assign]

    hook = {"trials": trials, "parts": parts}
    found = run("ddp", hook=hook, custom_hooks=[Count()])
    return {**found, "count": count[0]}


def test_ranks_agree_in_trials_only_and_come_to_the_same_after_them(two_ranks: Ranks) -> None:
    truth = two_ranks(run, "ddp")
    for parts in (1, 2):
        found = {trials: two_ranks(counted, trials, parts) for trials in (0, 2, None)}
        base = found[0][0]["count"]
        assert found[2][0]["count"] == base + 2
        assert found[None][0]["count"] == base + ITERS
        for ranks in found.values():
            for one, other in zip(ranks, truth, strict=True):
                assert_close(one, other)


def failing(rooms: list[int], **hook: Any) -> tuple[str, str]:
    with pytest.raises(Exception) as caught:
        run("ddp", rooms, hook=hook)
    return type(caught.value).__name__, " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_ranks_that_cannot_make_a_step_in_any_number_of_parts_all_end(two_ranks: Ranks) -> None:
    (one, told), (other, why) = two_ranks(failing, [EVERYWHERE, 0])
    assert (one, other) == ("PeerError", "OutOfMemoryError")
    assert "rank 1 cannot make the step with the memory it has: OutOfMemoryError: no memory" in told
    assert "it does not fit one sample at a time either" in why


def test_after_the_trials_a_step_that_runs_out_of_memory_ends_the_run_and_says_what_helps(
    two_ranks: Ranks,
) -> None:
    for kind, why in two_ranks(failing, [2, 2], trials=0):
        assert kind == "OutOfMemoryError"
        assert "give MicroBatchHook more trials=" in why


def resumed(folder: str, strategy: str, rooms: list[int], stop: int | None, **options: Any) -> dict[str, Any]:
    hooks = {} if stop is None else {"custom_hooks": [Stop(stop)]}
    return run(strategy, rooms, hook={"trials": 3}, work_dir=folder, model={"drop": 0.3}, **hooks, **options)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_run_that_is_stopped_goes_on_bitwise_in_as_many_parts(
    stop: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    one = str(tmp_path / "one")
    truth = resumed(str(tmp_path / "whole"), "single", [5], None)
    resumed(one, "single", [5], stop)
    found = resumed(one, "single", [5], None, resume=True)
    assert_same(found, {**truth, "seen": truth["seen"][stop:]})
    assert found["hook"] == truth["hook"]
    two, rooms = str(tmp_path / "two"), [EVERYWHERE, 3]
    truths = two_ranks(resumed, str(tmp_path / "both"), "ddp", rooms, None)
    two_ranks(resumed, two, "ddp", rooms, stop)
    for one_found, one_truth in zip(
        two_ranks(resumed, two, "ddp", rooms, None, resume=True), truths, strict=True
    ):
        assert_same(one_found, {**one_truth, "seen": one_truth["seen"][stop:]})
        assert one_found["hook"] == one_truth["hook"] == {"parts": 2, "tried": 3, "found": None}


def refused(strategy: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(strategy, hook={})
    return str(caught.value)


def test_strategies_whose_ranks_wait_for_each_other_within_a_step_are_refused(two_ranks: Ranks) -> None:
    for told in two_ranks(refused, "fsdp"):
        assert "strategy='fsdp': ranks wait for each other within a step" in told


class Shrink(Hook):
    """Leaves no memory from an iteration on."""

    def before_train_iter(self, runner: Any) -> None:
        if runner.iter == 3:
            runner.model.room = 0


def broken_off(folder: str) -> str:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        saving = {"default_hooks": {"checkpoint": {"save_on": "exception"}}}
        run(work_dir=folder, hook={}, custom_hooks=[Shrink()], **WAYS["in windows"], **saving)
    return " ".join(caught.value.__notes__)


def test_a_run_that_ends_for_lack_of_memory_within_a_window_is_saved_and_gone_on_with_bitwise(
    tmp_path: Path,
) -> None:
    truth = run(work_dir=str(tmp_path / "whole"), hook={}, **WAYS["in windows"])
    assert "saved as of iteration 3" in broken_off(str(tmp_path / "broken"))
    found = run(work_dir=str(tmp_path / "broken"), hook={}, resume=True, **WAYS["in windows"])
    assert_same(found, {**truth, "seen": truth["seen"][3:]})


def test_parts_and_an_optimizer_that_is_divided_go_together(two_ranks: Ranks) -> None:
    divided = {"type": "ddp", "shard_optimizer": True}
    hook = {"find": True, "trials": 3}
    for one, other in zip(
        two_ranks(run, divided, [EVERYWHERE, 2], hook=hook),
        two_ranks(run, "ddp", [EVERYWHERE, 2], hook=hook),
        strict=True,
    ):
        assert_same(one, other)
