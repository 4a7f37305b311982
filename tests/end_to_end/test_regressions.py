"""What once went wrong for users, each at its smallest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratrun import CheckpointError, ConfigError, Hook, Runner
from stratrun.loggers import Logger
from stratrun.loops import EpochBasedTrainLoop
from tests.problems import perceptron, points, trained, weights
from tests.ranks import Ranks


def form(**options: Any) -> dict[str, Any]:
    return {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(20), "batch_size": 5},
        "train_cfg": {"max_epochs": 3},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "randomness": {"seed": 0},
        "loggers": (),
        **options,
    }


class SaveAndStop(Hook):
    """Saves as any hook does, before the schedules have moved."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)

    def after_train_epoch(self, runner: Any) -> None:
        if runner.epoch == -self.at:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("at", [1, 4, 5, -1, -2])
def test_schedule_is_not_late_when_a_hook_saved_before_it_moved(
    tmp_path: Path, by_epoch: bool, at: int
) -> None:
    decay = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": by_epoch}
    off = {"default_hooks": {"checkpoint": None}}
    whole = trained(perceptron(), **form(param_scheduler=decay))
    broken = form(param_scheduler=decay, work_dir=tmp_path, **off)
    Runner(perceptron(), custom_hooks=[SaveAndStop(at)], **broken).train()
    resumed = Runner(perceptron(), resume=True, **broken)
    resumed.train()
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


def test_optimizer_that_needs_a_closure_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="LBFGS calls for the loss several times"):
        trained(perceptron(), **form(optimizer={"type": "LBFGS"}))


def test_resume_with_another_optimizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    Runner(perceptron(), **form(work_dir=tmp_path, train_cfg={"max_epochs": 1})).train()
    other = form(work_dir=tmp_path, optimizer={"type": "Adam", "lr": 0.1}, resume=True)
    with pytest.raises(CheckpointError, match=r"Adam, is of another class.*betas"):
        Runner(perceptron(), **other).train()


def test_resume_with_an_optimizer_that_asks_for_its_own_state_is_refused_too(tmp_path: Path) -> None:
    adam = form(work_dir=tmp_path, optimizer={"type": "Adam", "lr": 0.1}, train_cfg={"max_epochs": 1})
    Runner(perceptron(), **adam).train()
    other = form(work_dir=tmp_path, optimizer={"type": "NAdam", "lr": 0.1}, resume=True)
    with pytest.raises(CheckpointError, match=r"NAdam, is of another class.*mu_product"):
        Runner(perceptron(), **other).train()


def test_run_without_loss_scale_goes_on_with_one(tmp_path: Path) -> None:
    Runner(perceptron(), **form(work_dir=tmp_path, train_cfg={"max_epochs": 1})).train()
    resumed = Runner(perceptron(), **form(work_dir=tmp_path, precision="16-mixed", resume=True))
    resumed.train()
    assert resumed.epoch == 3


class Rotated(nn.Module):
    """Has a complex buffer, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.ones(3)))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.linear(inputs).float() * self.turn).imag

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_complex_buffers_stay_complex(precision: str) -> None:
    options = form(precision=precision)
    del options["loss"]
    model = trained(Rotated(), **options).model
    assert model.turn.is_complex()
    assert model.turn.imag.abs().min() > 0.5


class Thaw(Hook):
    def before_train_epoch(self, runner: Any) -> None:
        runner.model[0].requires_grad_(runner.epoch >= 1)


def plain_thawing(epochs: int) -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(16).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for epoch in range(epochs):
        model[0].requires_grad_(epoch >= 1)
        for start in range(0, 16, 8):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[start : start + 8]), targets[start : start + 8]).backward()
            optimizer.step()
    return weights(model)


def with_thawing(work_dir: str) -> dict[str, Tensor]:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(16), "global_batch_size": 8, "shuffle": False},
        train_cfg={"max_epochs": 3},
        optimizer={"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        custom_hooks=[Thaw()],
        work_dir=work_dir,
    )
    return weights(runner.model)


def test_what_is_thawed_during_training_is_trained(two_ranks: Ranks, tmp_path: Path) -> None:
    truth = plain_thawing(3)
    for found in [with_thawing(str(tmp_path / "alone")), *two_ranks(with_thawing, str(tmp_path / "ranks"))]:
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


class Duel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.judge, self.maker = perceptron(0), perceptron(1)

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        made = F.pad(self.maker(batch[0]), (0, 2))
        judged = (self.judge(batch[0]) ** 2).mean() + self.judge(made.detach()).mean()
        return {"judge": judged, "maker": -self.judge(made).mean()}


class ByTurns(EpochBasedTrainLoop):
    def run_iter(self, idx: int, data_batch: Any) -> Any:
        for player in ("judge", "maker"):
            self.runner.model.judge.requires_grad_(player == "judge")
            losses = self.runner.engine.forward(data_batch, "train")
            self.runner.engine.update(losses[player], player)
        return {}


def by_turns(work_dir: str) -> dict[str, Tensor]:
    sgd = {"type": "SGD", "lr": 0.1}
    runner = trained(
        Duel(),
        train_dataloader={"dataset": points(16), "global_batch_size": 8, "shuffle": False},
        train_cfg={"type": ByTurns, "max_epochs": 3},
        optimizer={name: {**sgd, "params": name} for name in ("judge", "maker")},
        work_dir=work_dir,
    )
    return weights(runner.model)


def test_a_part_that_is_frozen_while_it_is_not_its_turn_is_the_same_on_all_ranks(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    alone = by_turns(str(tmp_path / "alone"))
    for found in two_ranks(by_turns, str(tmp_path / "ranks")):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)


class Modes(Hook):
    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append((runner.model.training, runner.model[1].training))


def test_a_part_in_evaluation_mode_stays_there_over_validations(tmp_path: Path) -> None:
    model, modes = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), Modes()
    model[1].eval()
    given = form(
        val_dataloader={"dataset": points(8), "batch_size": 4},
        val_evaluator={"type": "Accuracy"},
        custom_hooks=[modes],
        work_dir=str(tmp_path),
    )
    Runner(model, **given).train()
    assert modes.seen == [(True, False)] * 12


def test_a_model_that_comes_in_evaluation_mode_is_trained_in_training_mode(tmp_path: Path) -> None:
    model, modes = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)).eval(), Modes()
    Runner(model, **form(custom_hooks=[modes], work_dir=str(tmp_path))).train()
    assert modes.seen == [(True, True)] * 12


class NormOff(nn.Sequential):
    def train(self, mode: bool = True) -> "NormOff":
        super().train(mode)
        self[1].eval()
        return self


class NormOffLater(Hook):
    def before_train_epoch(self, runner: Any) -> None:
        if runner.epoch == 1:
            runner.model[1].eval()


class EvalByHand(Hook):
    def after_train_iter(self, runner: Any) -> None:
        runner.model.eval()


@pytest.mark.parametrize(
    ("kind", "hooks", "norm_on"),
    [
        (NormOff, [], [False] * 12),
        (nn.Sequential, [NormOffLater()], [True] * 4 + [False] * 8),
        (nn.Sequential, [EvalByHand()], [True] * 12),
    ],
)
def test_parts_are_trained_in_the_mode_that_the_user_chose(
    kind: Any, hooks: list[Hook], norm_on: list[bool], tmp_path: Path
) -> None:
    model, modes = kind(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), Modes()
    given = form(
        val_dataloader={"dataset": points(8), "batch_size": 4},
        val_evaluator={"type": "Accuracy"},
        custom_hooks=[modes, *hooks],
        work_dir=str(tmp_path),
    )
    Runner(model, **given).train()
    assert modes.seen == [(True, on) for on in norm_on]


class Talkative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        scores = self.net(batch[0])
        return {"loss": F.cross_entropy(scores, batch[1]), "extra": [{"scores": (scores,)}]}


class Collector(Hook):
    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def after_train_iter(self, outputs: Any) -> None:
        self.scores.append(outputs["extra"][0]["scores"][0])


def test_outputs_that_a_hook_keeps_keep_no_graph(tmp_path: Path) -> None:
    collector = Collector()
    Runner(Talkative(), **form(loss=None, custom_hooks=[collector], work_dir=str(tmp_path))).train()
    assert [scores.grad_fn for scores in collector.scores] == [None] * 12


class BreakOff(Hook):
    def before_val(self) -> None:
        raise KeyboardInterrupt


def logged_losses(work_dir: Path) -> list[tuple[int, float]]:
    files = sorted(work_dir.glob("runs/*/metrics.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(row["iter"], row["loss"]) for row in rows if "loss" in row]


def test_a_run_broken_off_in_its_last_validation_still_logs_its_last_losses(tmp_path: Path) -> None:
    given = form(
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": 3},
        val_dataloader={"dataset": points(8), "batch_size": 4},
        val_evaluator={"type": "Accuracy"},
        default_hooks={"logger": {"interval": 2}, "checkpoint": {"interval": 3, "by_epoch": False}},
        loggers=["jsonl"],
    )
    Runner(perceptron(), work_dir=tmp_path / "whole", **given).train()
    with pytest.raises(KeyboardInterrupt):
        Runner(perceptron(), work_dir=tmp_path / "broken", custom_hooks=[BreakOff()], **given).train()
    Runner(perceptron(), work_dir=tmp_path / "broken", resume=True, **given).train()
    assert logged_losses(tmp_path / "broken") == logged_losses(tmp_path / "whole")


class Said(Logger):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def log(self, record: Any) -> None:
        return None

    def say(self, text: str) -> None:
        self.texts.append(text)


def accumulating(work_dir: str, max_iters: int, resume: bool) -> str:
    said = Said()
    given = form(
        train_dataloader={"dataset": points(24), "global_batch_size": 4},
        train_cfg={"by_epoch": False, "max_iters": 6, "accumulate": 3},
        custom_hooks=[SaveAndStop(max_iters)],
        default_hooks={"checkpoint": None},
        loggers=[said],
        work_dir=work_dir,
        resume=resume,
    )
    Runner(perceptron(), **given).train()
    return "".join(said.texts)


@pytest.mark.parametrize("stop", [2, 3])
def test_another_number_of_ranks_is_told_of(stop: int, two_ranks: Ranks, tmp_path: Path) -> None:
    accumulating(str(tmp_path), stop, False)
    told = two_ranks(accumulating, str(tmp_path), 6, True)[0]
    assert "resumed from" in told
    assert "saved at WORLD_SIZE=1, now 2" in told
