"""The training step compiled as one, and captured by a stand-in for CUDA: as a plain loop trains."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import ConfigError, Hook, NonFiniteError, Runner
from stratrun.engine import whole_step
from stratrun.engine.finite import Guard
from stratrun.engine.graphs import WARM_UP, GraphedStep
from stratrun.engine.late import Late
from tests.parity import test_compiled as compiled
from tests.problems import QUIET, perceptron, points, weights
from tests.ranks import Ranks

SAMPLES, BATCH, EPOCHS, RATE = 22, 4, 3, 2.0**-6
"""The last batch of an epoch is short."""
STEPS = 6


class Replays:
    """Captures by remembering, and replays by doing it again, on the memory of the first time."""

    def __init__(self) -> None:
        self.warm = self.captures = self.replays = 0
        self.fails: Exception | None = None

    def warm_up(self, work: Callable[[], Any]) -> Any:
        self.warm += 1
        return work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.fails is not None:
            raise self.fails
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """In place of CUDA; and the device is trusted with updates, as CUDA is."""
    made = Replays()
    monkeypatch.setitem(whole_step.CAPTURES, "cpu", lambda device: made)
    prepare = Guard.prepare

    def trusting(guard: Guard, optimizers: Any) -> None:
        prepare(guard, optimizers)
        guard._late = Late.of(guard.settings, optimizers, guard._flag)
        guard._in_host = None

    monkeypatch.setattr(Guard, "prepare", trusting)
    return made


def arguments(**options: Any) -> dict[str, Any]:
    loader = {"dataset": points(SAMPLES), "batch_size": BATCH, "shuffle": False}
    given = {
        "train_dataloader": loader,
        "train_cfg": {"max_epochs": EPOCHS},
        "optimizer": {"type": "AdamW", "lr": RATE, "fused": True},
        "loss": "cross_entropy",
        "clip_grad": 0.5,
        **QUIET,
    }
    return {**given, **options}


def run(model: nn.Module, **options: Any) -> Runner:
    runner = Runner(model, **arguments(**options))
    try:
        runner.train()
    finally:
        runner.close()
    return runner


def plain(bad: tuple[int, ...] = (), step: float = 1.0, clip: float = 0.5) -> dict[str, Tensor]:
    """Written out; without the batches `bad` of each epoch, the rate multiplied by `step` each update."""
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    for _ in range(EPOCHS):
        for number, first in enumerate(range(0, SAMPLES, BATCH)):
            if number in bad:
                continue
            part = slice(first, first + BATCH)
            cross_entropy(model(inputs[part]), targets[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] *= step
    return weights(model)


def test_model_and_loss_of_a_step_are_one_graph_and_train_as_a_plain_loop_does() -> None:
    graphs = compiled.Graphs()
    runner = run(perceptron(), compile={"step": True, "backend": graphs, "dynamic": True})
    torch.testing.assert_close(weights(runner.model), plain())
    assert "cross_entropy" in graphs.operations() and "linear" in graphs.operations()
    assert runner.compilations is not None and runner.compilations.breaks == 0
    assert any(reason.startswith("compile=the whole training step") for reason in runner.reasons)


def test_a_captured_step_trains_as_a_plain_loop_does_with_a_short_batch_and_a_schedule(
    replays: Replays,
) -> None:
    schedule = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False}
    runner = run(perceptron(), compile={"graphs": True}, param_scheduler=schedule)
    torch.testing.assert_close(weights(runner.model), plain(step=0.5))
    # The short batches, of which one comes each epoch, are never captured.
    assert (replays.captures, replays.warm) == (1, WARM_UP + EPOCHS)
    assert replays.replays == EPOCHS * STEPS - replays.warm
    assert (runner.iter, runner.step) == (EPOCHS * STEPS, EPOCHS * STEPS)
    (group,) = runner.engine.optimizers["optimizer"].param_groups
    assert type(group["lr"]) is float and group["capturable"] is False


class Spoilt(nn.Module):
    """A perceptron whose loss is no number for a batch that begins with `bad`."""

    def __init__(self, bad: Tensor) -> None:
        super().__init__()
        self.inner = perceptron()
        self.register_buffer("bad", bad)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs) + torch.where((inputs[0] == self.bad).all(), torch.nan, 0.0)


def test_replayed_updates_of_a_loss_that_is_not_finite_are_dropped_and_counted(replays: Replays) -> None:
    model = Spoilt(points(SAMPLES).tensors[0][BATCH * 4])
    # A norm in host memory would be looked at there, which one on a device is not.
    runner = run(model, compile={"graphs": True}, non_finite="skip", clip_grad=None)
    torch.testing.assert_close(weights(model.inner), plain(bad=(4,), clip=1e9))
    assert (runner.step, runner.state.skipped) == (EPOCHS * (STEPS - 1), EPOCHS)
    assert replays.captures == 1


def test_a_replay_that_is_not_finite_ends_the_run_with_its_samples_named(replays: Replays) -> None:
    model = Spoilt(points(SAMPLES).tensors[0][BATCH * 4])
    with pytest.raises(NonFiniteError, match="samples 16, 17, 18, 19 of the data set"):
        run(model, compile={"graphs": True}, clip_grad=None)
    assert replays.replays > 0


def tensors_of(runner: Any) -> list[Tensor]:
    (optimizer,) = runner.engine.optimizers.values()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [*runner.model.parameters(), *runner.model.buffers(), *states]


class Versions(Hook):
    def __init__(self, replays: Replays) -> None:
        self.replays = replays
        self.seen: list[tuple[int, list[int]]] = []

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append((self.replays.replays, [one._version for one in tensors_of(runner)]))


def test_whoever_goes_by_versions_of_tensors_sees_that_a_replay_has_written_them(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_down, hook = GraphedStep._take_down, Versions(replays)

    def silent(step: GraphedStep, *arguments: Any) -> None:
        """A replay on a device calls no operation, and only those count versions."""
        take_down(step, *arguments)
        replay = step._replay
        assert replay is not None

        def quiet() -> None:
            with torch.autograd._unsafe_preserve_version_counter(tuple(tensors_of(runner))):
                replay()

        step._replay = quiet

    monkeypatch.setattr(GraphedStep, "_take_down", silent)
    model = nn.Sequential(nn.BatchNorm1d(5), perceptron())
    runner = Runner(model, **arguments(compile={"graphs": True}, custom_hooks=[hook]))
    runner.train()
    replayed = [(before[1], after[1]) for before, after in pairwise(hook.seen) if after[0] > before[0]]
    assert len(replayed) == replays.replays > 0
    for before, after in replayed:
        assert all(later > earlier for earlier, later in zip(before, after, strict=True))


def test_a_hook_of_the_optimizer_that_no_replay_would_call_is_refused_with_its_name(replays: Replays) -> None:
    def watched(optimizer: Any, args: Any, kwargs: Any) -> None: ...

    def made(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
        optimizer.register_step_pre_hook(watched)
        return optimizer

    with pytest.raises(ConfigError, match=r"no replay calls .*watched, a hook of it"):
        run(perceptron(), compile={"graphs": True}, optimizer=made)


def trained_once() -> Runner:
    return run(perceptron(), compile={"graphs": True}, train_cfg={"max_epochs": 1})


def test_outputs_of_replays_may_be_kept_and_a_loaded_state_is_captured_anew(replays: Replays) -> None:
    engine, inputs = trained_once().engine, points(SAMPLES).tensors
    whole = [inputs[0][:BATCH], inputs[1][:BATCH]]
    losses = [engine.train_step(whole)["loss"] for _ in range(3)]
    assert len({float(loss) for loss in losses}) == 3
    optimizer = engine.optimizers["optimizer"]
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(WARM_UP + 1):
        engine.train_step(whole)
    assert replays.captures == 2


def test_what_changes_after_the_capture_is_refused(replays: Replays) -> None:
    engine = trained_once().engine
    inputs, targets = points(SAMPLES).tensors
    with pytest.raises(ConfigError, match=r"a third one came.*\(3, 5\).*drop_last=True"):
        engine.train_step([inputs[:3], targets[:3]])
    (group,) = engine.optimizers["optimizer"].param_groups
    group["betas"] = (0.5, 0.9)
    with pytest.raises(ConfigError, match=r"betas of the optimizer was .*cycle_momentum=False"):
        engine.train_step([inputs[:BATCH], targets[:BATCH]])
    with pytest.raises(ConfigError, match=r"this loop calls engine.update.*call train_step"):
        engine.update(torch.zeros(()))
    with pytest.raises(ConfigError, match="leave accumulate= or graphs= out"):
        engine.train_step([inputs[:BATCH], targets[:BATCH]], update=False, divisor=2)


def test_a_step_that_cannot_be_captured_is_refused_with_the_cause(replays: Replays) -> None:
    replays.fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(ConfigError, match=r"must not wait for the device.*count_syncs") as caught:
        run(perceptron(), compile={"graphs": True})
    assert caught.value.__cause__ is replays.fails


class Skips(nn.Module):
    """Leaves its second half out at random, as the host draws."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.inner, self.draw = perceptron(), draw

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        return outputs if self.draw() < 0.5 else outputs * 2


@pytest.mark.parametrize(
    ("draw", "name"),
    [(random.random, "python"), (lambda: float(torch.rand(())), "torch"), (numpy.random.rand, "numpy")],
)
def test_a_step_that_draws_on_the_host_is_refused_before_it_is_captured(
    replays: Replays, draw: Callable[[], float], name: str
) -> None:
    with pytest.raises(ConfigError, match=rf"on the host \(of {name}\), which each replay would have alike"):
        run(Skips(draw), compile={"graphs": True})
    assert replays.captures == 0


SEVERAL = {"a": {"type": "SGD", "lr": 0.1, "params": "0"}, "b": {"type": "SGD", "lr": 0.1, "params": "2"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train_cfg": {"max_epochs": 1, "accumulate": 2}}, "accumulate=2 makes one of several"),
    ({"optimizer": SEVERAL}, "there are 2"),
    ({"optimizer": {"type": "SGD", "lr": 0.1, "foreach": True}}, "SGD with fused=True"),
    ({"optimizer": {"type": "NAdam", "lr": 0.1}}, "non_finite='ignore'"),
    ({"precision": "16-mixed", "accelerator": "cpu"}, "16-mixed|bf16-mixed"),
    ({"activation_checkpointing": {"blocks": ["0"]}}, "random numbers"),
    ({"compile": {"graphs": True, "mode": "reduce-overhead"}}, "graphs of its own"),
    ({"compile": {"step": True, "blocks": "Linear"}}, "give one of them"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_cannot_be_captured_safely_is_refused(
    replays: Replays, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        run(perceptron(), **{"compile": {"graphs": True}, **options})
    assert replays.captures == 0


def test_graphs_need_a_cuda_device() -> None:
    with pytest.raises(ConfigError, match=r"a CUDA device, and this run is on 'cpu'.*step=True"):
        run(perceptron(), compile={"graphs": True})


def test_a_step_compiled_as_one_exchanges_its_gradients(two_ranks: Ranks, tmp_path: Any) -> None:
    options = {"strategy": "ddp", "compile": {"step": True, "backend": "eager"}}
    for found in two_ranks(compiled.run, str(tmp_path), **options):
        torch.testing.assert_close(found["weights"], compiled.plain(), rtol=1e-5, atol=1e-6)
        assert any("the whole training step" in reason for reason in found["reasons"])
