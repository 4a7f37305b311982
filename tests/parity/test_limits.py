"""Limited and overfitted runs: the weights of a plain loop, and over kills those of the run that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import DataError, Hook, Runner
from tests.parity.sharded import whole
from tests.problems import QUIET, perceptron, points
from tests.ranks import Ranks

SAMPLES, BATCH, LIMIT = 61, 12, 3


class Killed(Exception):
    """Where the run is broken off."""


class Kill(Hook):
    """Breaks a run off when so many iterations are done, the one before being saved."""

    priority = 100

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()
        if runner.iter == self.at + 1:
            raise Killed


class Noisy(nn.Module):
    """Draws in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3), perceptron())

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.net(inputs)
        return out


def run(work_dir: str, strategy: str, dev: dict[str, Any], *hooks: Hook, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "train_dataloader": {"dataset": points(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": 2, "accumulate": 2},
        "optimizer": {"type": "SGD", "lr": 0.3, "momentum": 0.9},
        "loss": "cross_entropy",
        "strategy": strategy,
        "randomness": {"seed": 4},
        "work_dir": work_dir,
        "custom_hooks": hooks,
        "dev_cfg": dev,
    }
    runner = Runner(options.pop("model", None) or perceptron(), **{**QUIET, **given, **options})
    try:
        runner.train()
        counts = (runner.epoch, runner.iter, runner.step, runner.samples, runner.max_iters)
        return {"weights": whole(runner.model), "counts": counts}
    finally:
        runner.close()


def plain() -> dict[str, Tensor]:
    """Two epochs of the first three batches, two to an update."""
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    parts = [slice(start, start + BATCH) for start in range(0, LIMIT * BATCH, BATCH)]
    for _ in range(2):
        for window in (parts[:2], parts[2:]):
            for part in window:
                (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in model.state_dict().items()}


DEVS: dict[str, dict[str, Any]] = {
    "a number": {"limit_batches": LIMIT},
    "a share": {"limit_batches": 0.5},
    "same": {"overfit_batches": 3},
}


@pytest.mark.parametrize("dev", DEVS)
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_weights_are_those_of_a_plain_loop_over_the_first_batches(
    strategy: str, dev: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), strategy, DEVS[dev])
    found = run(*arguments) if strategy == "single" else two_ranks(run, *arguments)[0]
    torch.testing.assert_close(found["weights"], plain(), rtol=1e-5, atol=1e-6)
    assert found["counts"] == (2, 6, 4, 2 * LIMIT * BATCH, 6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_ranks_share_the_same_first_batches(strategy: str, four_ranks: Ranks, tmp_path: Path) -> None:
    found = four_ranks(run, str(tmp_path), strategy, {"limit_batches": LIMIT})[0]
    torch.testing.assert_close(found["weights"], plain(), rtol=1e-5, atol=1e-6)


def several() -> dict[str, Any]:
    loaders = {
        name: {"dataset": points(size, seed=size), "global_batch_size": 4}
        for name, size in (("a", 30), ("b", 22))
    }
    return {"type": "MultiLoader", "mode": "weighted", "weights": {"a": 1, "b": 2}, "loaders": loaders}


def shuffled() -> dict[str, Any]:
    return {"dataset": points(SAMPLES), "global_batch_size": BATCH}


def resumes(work_dir: str, strategy: str, dev: dict[str, Any]) -> None:
    for name, make in (("one", shuffled), ("several", several)):
        place = f"{work_dir}/{name}"

        def part(
            folder: str, *hooks: Hook, resume: bool = False, make: Any = make, place: str = place
        ) -> Any:
            data = {"train_dataloader": make(), "model": Noisy(), "resume": resume}
            return run(f"{place}-{folder}", strategy, dev, *hooks, **data)

        truth = part("whole")
        assert truth["counts"][:2] == (2, 6)
        for at in (1, 2, 3, 4):
            with pytest.raises(Killed):
                part(f"killed-{at}", Kill(at))
            found = part(f"killed-{at}", resume=True)
            assert found["counts"] == truth["counts"]
            assert all(torch.equal(found["weights"][key], truth["weights"][key]) for key in truth["weights"])


@pytest.mark.parametrize("dev", ["a number", "same"])
def test_a_limited_run_that_was_killed_is_the_one_that_was_not(dev: str, tmp_path: Path) -> None:
    resumes(str(tmp_path), "single", DEVS[dev])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_limited_run_of_two_ranks_that_was_killed_is_the_one_that_was_not(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(resumes, str(tmp_path), strategy, DEVS["a number"])


def killed(work_dir: str, at: int, **options: Any) -> None:
    with pytest.raises(Killed):
        run(work_dir, "ddp", {"limit_batches": LIMIT}, Kill(at), **options)


def test_a_limited_run_goes_on_with_the_same_samples_on_other_ranks(two_ranks: Ranks, tmp_path: Path) -> None:
    for at in (1, 2, 4):
        work_dir = str(tmp_path / str(at))
        two_ranks(killed, work_dir, at)
        found = run(work_dir, "single", {"limit_batches": LIMIT}, resume=True)
        torch.testing.assert_close(found["weights"], plain(), rtol=1e-5, atol=1e-6)
        assert found["counts"] == (2, 6, 4, 2 * LIMIT * BATCH, 6)


def test_a_limited_epoch_is_refused_in_batches_of_another_size(two_ranks: Ranks, tmp_path: Path) -> None:
    data = {"train_dataloader": {"dataset": points(SAMPLES), "batch_size": 6}}
    two_ranks(killed, str(tmp_path), 1, **data)
    with pytest.raises(DataError, match=r"12 samples .* 6 now"):
        run(str(tmp_path), "single", {"limit_batches": LIMIT}, resume=True, **data)


def evaluated(work_dir: str, strategy: str) -> list[float]:
    """The accuracy of a part of the data: 17 samples in batches of 4, the last of which rank 1 lacks."""
    found = []
    for limit in (1, 2, 0.34, 0.67, 3):
        runner = Runner(
            perceptron(),
            test_dataloader={"dataset": points(17), "global_batch_size": 8},
            test_evaluator={"type": "Accuracy"},
            loss="cross_entropy",
            strategy=strategy,
            work_dir=work_dir,
            dev_cfg={"limit_batches": {"test": limit}},
            **QUIET,
        )
        found.append(runner.test()["accuracy"])
        runner.close()
    return found


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_limited_evaluation_is_of_the_first_samples(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), strategy)
    found = evaluated(*arguments) if strategy == "single" else two_ranks(evaluated, *arguments)[0]
    inputs, targets = points(17).tensors
    with torch.no_grad():
        hits = (perceptron()(inputs).argmax(1) == targets).double()
    assert found == pytest.approx([float(hits[:count].mean()) for count in (8, 16, 8, 16, 17)])
