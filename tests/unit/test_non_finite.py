"""Updates on a device that drops them by itself, what a good step costs, and what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from stratrun import ConfigError, Hook, NonFiniteError, Runner
from stratrun.checkpoint.discovery import committed_steps
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.engine import Guard, NonFinite
from stratrun.engine.late import Late
from stratrun.host_numbers import finite_in_host
from stratrun.precision.base import Precision
from stratrun.state import TrainState
from stratrun.storage import Folder
from tests.problems import perceptron, points, trained, weights

SAMPLES, BATCH, BAD = 24, 4, 9


def arguments(**options: Any) -> dict[str, Any]:
    data = points(SAMPLES)
    data.tensors[0][BAD] = math.nan
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": data, "batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "AdamW", "lr": 0.02, "fused": True},
        "param_scheduler": {"type": "StepLR", "step_size": 4, "gamma": 0.5, "by_epoch": False},
        **options,
    }


class HeardLater(Hook):
    """Has the run treat this host as a device that is not waited for: fused optimizers drop updates here."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def before_train(self, runner: Any) -> None:
        guard: Guard = runner.engine.guard
        guard._late = Late.of(guard.settings, runner.engine.optimizers, guard._flag)
        assert guard._late is not None

    def before_train_iter(self, runner: Any) -> None:
        self.kept.append(weights(runner.model))


def plain() -> dict[str, Tensor]:
    """A loop that leaves the bad batch out."""
    model, arguments_ = perceptron(), arguments()
    inputs, targets = arguments_["train_dataloader"]["dataset"].tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    for _ in range(2):
        for first in range(0, SAMPLES, BATCH):
            if not first <= BAD < first + BATCH:
                cross_entropy(model(inputs[first : first + BATCH]), targets[first : first + BATCH]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


def test_updates_after_one_that_is_heard_of_later_are_dropped_too(tmp_path: Any) -> None:
    hook = HeardLater()
    model = perceptron()
    runner = Runner(
        model,
        custom_hooks=[hook],
        work_dir=str(tmp_path),
        default_hooks={"checkpoint": None},
        loggers=(),
        **arguments(),
    )
    with pytest.raises(NonFiniteError, match=r"in iteration 3 of epoch 0: loss nan \(samples 8, 9"):
        runner.train()
    runner.close()
    # The third update was bad, and the fourth had begun when that was heard.
    assert runner.iter == 3
    torch.testing.assert_close(weights(model), hook.kept[2], rtol=0, atol=0)


def test_a_run_that_hears_of_a_bad_batch_later_is_not_saved_as_if_the_batch_were_done(tmp_path: Any) -> None:
    hooks: dict[str, Any] = {"checkpoint": {"save_on": "exception"}}
    given = {**arguments(), "loggers": (), "default_hooks": hooks, "work_dir": str(tmp_path)}
    runner = Runner(perceptron(), custom_hooks=[HeardLater()], **given)
    with pytest.raises(NonFiniteError) as caught:
        runner.train()
    runner.close()
    assert any("counted before that was known" in note for note in caught.value.__notes__)
    assert committed_steps(Folder(f"{tmp_path}/checkpoints")) == []


def test_samples_are_named_by_their_place_in_the_data_set_whatever_the_order(tmp_path: Any) -> None:
    given = arguments()
    given["train_dataloader"]["shuffle"] = True
    with pytest.raises(NonFiniteError, match=rf"samples [\d, ]*\b{BAD}\b[\d, ]* of the data set"):
        trained(perceptron(), work_dir=str(tmp_path), **given)


def test_ranks_that_all_find_something_drop_an_update_as_one_of_them_does() -> None:
    class Two:
        """Kernels that ask the flag drop an update for 1, and make it for 2."""

        def sum(self, tensor: Tensor) -> Tensor:
            return tensor * 2

    side: Any = Two()
    ranks = Collectives(ProcessEnv())
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    guard = Guard(NonFinite(), precision=Precision(), state=TrainState(), ranks=ranks, side=side)
    guard.prepare({"optimizer": optimizer})
    guard._late = Late.of(guard.settings, {"optimizer": optimizer}, guard._flag)
    guard._in_host = None
    before = weights(model)
    gradients = [torch.full_like(p, math.nan) for p in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    guard.look(gradients)
    guard.permits()
    optimizer.step()
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)


def test_an_optimizer_of_which_one_group_is_not_fused_is_waited_for() -> None:
    first, second = (list(perceptron().parameters()) for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": first}, {"params": second, "fused": False}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    assert Late.of(NonFinite(), {"optimizer": optimizer}, torch.zeros(())) is None
    del groups[1]["fused"]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    assert Late.of(NonFinite(), {"optimizer": optimizer}, torch.zeros(())) is not None


def test_an_update_that_the_device_drops_is_left_out_and_counted_when_it_is_heard_of(tmp_path: Any) -> None:
    given = arguments(non_finite="skip", param_scheduler=None)
    runner = trained(perceptron(), custom_hooks=[HeardLater()], work_dir=str(tmp_path), **given)
    torch.testing.assert_close(weights(runner.model), plain(), rtol=0, atol=0)
    assert (runner.iter, runner.step, runner.state.skipped) == (12, 10, 2)


def test_a_run_that_hears_later_goes_back_and_on_with_the_data(tmp_path: Any) -> None:
    policy = {"policy": "rollback", "to": "memory", "every": 1}
    given = arguments(non_finite=policy, param_scheduler=None)
    runner = trained(perceptron(), custom_hooks=[HeardLater()], work_dir=str(tmp_path), **given)
    # A copy is not made before what it is of was heard of, so that nothing after it is lost.
    torch.testing.assert_close(weights(runner.model), plain(), rtol=0, atol=0)
    assert (runner.iter, runner.step, runner.state.skipped) == (12, 10, 2)


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Counted(Hook):
    """Looks at one step."""

    priority = 0

    def __init__(self) -> None:
        self.seen = Operations()

    def before_train_iter(self, runner: Any) -> None:
        if runner.iter == 3:
            self.seen.__enter__()

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == 4:
            self.seen.__exit__(None, None, None)


def test_a_good_step_costs_one_operation_and_none_where_a_norm_is_taken_anyway(tmp_path: Any) -> None:
    def operations(**options: Any) -> list[str]:
        hook = Counted()
        data = {"train_dataloader": {"dataset": points(SAMPLES), "batch_size": BATCH}}
        trained(perceptron(), custom_hooks=[hook], work_dir=str(tmp_path), **arguments(**data, **options))
        return sorted(hook.seen.names)

    check = "aten._amp_foreach_non_finite_check_and_unscale_.default"
    seed = "aten.ones_like.default"  # what torch begins a backward pass with, unless that is at hand
    bare = operations(non_finite="ignore")
    for policy in ("raise", "skip"):
        assert sorted([*operations(non_finite=policy), seed]) == sorted([*bare, check])
    assert sorted([*operations(clip_grad=1.0), seed]) == operations(clip_grad=1.0, non_finite="ignore")


def test_a_number_in_host_memory_is_read_without_an_operation() -> None:
    with Operations() as seen:
        pass
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for value in (
            0.0,
            -1.5,
            math.inf,
            -math.inf,
            math.nan,
            torch.finfo(dtype).max,
            torch.finfo(dtype).tiny,
        ):
            number = torch.tensor(value, dtype=dtype)
            with seen:
                found = finite_in_host(number)
            assert found == math.isfinite(value)
    assert seen.names == []
    assert finite_in_host(torch.empty((), device="meta")) is None
    assert finite_in_host(nn.Parameter(torch.zeros(()))) is None


class Sparse(nn.Module):
    """Gradients of which torch's own check takes none: sparse and complex ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(4, 2, sparse=True)
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.calls = 0

    def train_step(self, batch: Any) -> Tensor:
        self.calls += 1
        rows: Tensor = self.rows(torch.tensor([1, 3]))
        loss = (rows * self.turn).abs().sum()
        return loss * math.inf if self.calls == 3 else loss


def test_gradients_of_every_kind_are_looked_at(tmp_path: Any) -> None:
    given = arguments(
        non_finite="skip", loss=None, param_scheduler=None, optimizer={"type": "SGD", "lr": 0.1}
    )
    runner = trained(Sparse(), work_dir=str(tmp_path), **given)
    assert (runner.step, runner.state.skipped) == (11, 1)
    assert all(value.isfinite().all() for value in weights(runner.model).values())


def test_gradients_that_overflow_behind_a_finite_loss_are_told_as_such(tmp_path: Any) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def train_step(self, batch: Any) -> Tensor:
            return self.weight.sqrt().sum()

    for clip in (None, 1.0, {"value": 1.0}):
        with pytest.raises(NonFiniteError, match="gradients that are not finite in iteration 1 of epoch 0"):
            trained(Steep(), work_dir=str(tmp_path), **arguments(clip_grad=clip, loss=None))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rise", "policy='rise' is unknown; did you mean 'raise'"),
        (None, "non_finite=None is not understood; give one of 'raise', 'skip', 'rollback', 'ignore'"),
        ({"policy": "skip", "limit": 2}, "limit is a setting of 'rollback', and policy='skip'; leave it out"),
        ({"policy": "rollback", "too": "memory"}, "has no setting 'too'; did you mean 'to'"),
        ({"policy": "rollback", "to": "disk"}, "to='disk' is unknown"),
        ({"policy": "rollback", "every": 5}, "every is about copies in memory"),
        ({"policy": "rollback", "limit": 0}, "limit=0 must be a whole number, at least 1"),
        ("rollback", "goes back to the newest checkpoint, and without a CheckpointHook there is none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_built(spec: Any, said: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(perceptron(), work_dir=str(tmp_path), **arguments(non_finite=spec))
    assert said in str(caught.value)
    assert NonFinite.parse("skip") == NonFinite.parse({"policy": "skip"})
