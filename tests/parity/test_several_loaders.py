"""Training on several loaders, against a plain loop, and over stops, under every strategy."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import NonFiniteError, Runner
from stratrun.hooks import Hook
from tests.parity.sharded import whole
from tests.problems import QUIET, perceptron, points
from tests.ranks import Ranks

SIZES = {"a": (23, 4), "b": (14, 6)}
"""Samples, and those of a global batch. The last of `a` has 3, the last of `b` 2."""
WEIGHTS = {"a": 1, "b": 2}


class TwoTasks(nn.Module):
    """Counts errors on a batch of each in its own way; else it takes whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: Any) -> Tensor:
        if not isinstance(batch, dict):
            return cross_entropy(self.net(batch[0]), batch[1])
        losses = {name: cross_entropy(self.net(x), y) for name, (x, y) in batch.items()}
        return losses["a"] + 0.5 * losses["b"]


def data(name: str) -> Any:
    return points(SIZES[name][0], seed=ord(name))


def spec(mode: str, *, shuffle: bool = False, **options: Any) -> dict[str, Any]:
    loaders = {
        name: {"dataset": data(name), "global_batch_size": size, "shuffle": shuffle}
        for name, (_, size) in SIZES.items()
    }
    return {"type": "MultiLoader", "loaders": loaders, "mode": mode, **options}


def run(work_dir: str, strategy: str, loader: Any, accumulate: int, **options: Any) -> Runner:
    runner = Runner(
        TwoTasks(),
        train_dataloader=loader,
        train_cfg={"max_epochs": 2, "accumulate": accumulate},
        optimizer={"type": "SGD", "lr": 0.3, "momentum": 0.9},
        strategy=strategy,
        randomness={"seed": 4},
        work_dir=work_dir,
        **{**QUIET, **options},
    )
    runner.train()
    return runner


def trained(work_dir: str, strategy: str, loader: Any, accumulate: int, **options: Any) -> dict[str, Any]:
    runner = run(work_dir, strategy, loader, accumulate, **options)
    state = runner.state
    counts = (state.iter, state.step, state.samples)
    found = {"weights": whole(runner.model), "counts": counts}
    runner.close()
    return found


def plain(epoch: list[list[tuple[str, slice]]], accumulate: int) -> dict[str, Tensor]:
    """One process that takes whole global batches; one of several loaders has a loss of each."""
    model, sets = TwoTasks(), {name: data(name).tensors for name in SIZES}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(2):
        for first in range(0, len(epoch), accumulate):
            window = epoch[first : first + accumulate]
            for batch in window:
                taken = {name: (sets[name][0][part], sets[name][1][part]) for name, part in batch}
                loss = model.train_step(taken if len(taken) > 1 else next(iter(taken.values())))
                (loss / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in model.state_dict().items()}


def slices(name: str) -> list[slice]:
    samples, size = SIZES[name]
    return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]


def by_turns() -> list[list[tuple[str, slice]]]:
    one, other = [("a", part) for part in slices("a")], [("b", part) for part in slices("b")]
    mixed = [batch for pair in zip(one, other, strict=False) for batch in pair]
    return [[batch] for batch in (*mixed, *one[len(other) :])]


def together() -> list[list[tuple[str, slice]]]:
    """Whole batches only: five of `a`, two of `b`, which come again in the same order."""
    return [[("a", slices("a")[i]), ("b", slices("b")[i % 2])] for i in range(5)]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("mode", "epoch", "samples"), [("round_robin", by_turns, 37), ("max_size", together, 50)]
)
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_weights_are_those_of_a_plain_loop(
    strategy: str, mode: str, epoch: Any, samples: int, accumulate: int, two_ranks: Ranks, tmp_path: Path
) -> None:
    arguments = (str(tmp_path), strategy, spec(mode), accumulate)
    found = trained(*arguments) if strategy == "single" else two_ranks(trained, *arguments)[0]
    torch.testing.assert_close(found["weights"], plain(epoch(), accumulate), rtol=1e-5, atol=1e-6)
    batches = len(epoch())
    assert found["counts"] == (2 * batches, 2 * -(-batches // accumulate), 2 * samples)


class Stop(Hook):
    """Saves after so many iterations, and ends the run."""

    priority = 100

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


LOADERS: dict[str, Any] = {
    "by weight": spec("weighted", shuffle=True, weights=WEIGHTS),
    "by weight, until the longest": spec("weighted", shuffle=True, weights=WEIGHTS, until="longest"),
    "together": spec("max_size", shuffle=True),
}


def resumes(work_dir: str, strategy: str) -> None:
    for kind, loader in LOADERS.items():
        truth = trained(f"{work_dir}/{kind}/whole", strategy, loader, 2)
        last = truth["counts"][0] // 2
        for at in (1, 3, last, last + 2):
            broken = f"{work_dir}/{kind}/{at}"
            trained(broken, strategy, loader, 2, custom_hooks=[Stop(at)])
            found = trained(broken, strategy, loader, 2, resume=True)
            assert found["counts"] == truth["counts"], (kind, at)
            for name, value in truth["weights"].items():
                assert torch.equal(found["weights"][name], value), (kind, at, name)


def test_a_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path: Path) -> None:
    resumes(str(tmp_path), "single")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_ranks_is_the_unbroken_one_to_the_bit(
    strategy: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(resumes, str(tmp_path), strategy)


@pytest.mark.parametrize("kind", LOADERS)
def test_stopped_on_two_ranks_it_goes_on_with_one_and_then_two(
    kind: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    loader = LOADERS[kind]
    truth = trained(str(tmp_path / "whole"), "single", loader, 2)
    work_dir = str(tmp_path / "moved")
    two_ranks(trained, work_dir, "ddp", loader, 2, custom_hooks=[Stop(3)])
    trained(work_dir, "single", loader, 2, resume=True, custom_hooks=[Stop(7)])
    found = two_ranks(trained, work_dir, "ddp", loader, 2, resume=True)[0]
    assert found["counts"] == truth["counts"]
    torch.testing.assert_close(found["weights"], truth["weights"], rtol=1e-4, atol=1e-5)


class Names(Hook):
    """Which loader each batch was of."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def after_train_iter(self, runner: Any) -> None:
        self.seen.append(runner.engine.batch.loader)


def own_batches(counts: tuple[int, int]) -> Any:
    """A function with as many batches as it says for this rank."""
    rank = int(os.environ["RANK"])

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        return (points(2, seed=10 * rank + number).tensors for number in range(counts[rank]))

    return made


def names(work_dir: str, mode: str, accumulate: int) -> list[str | None]:
    seen = Names()
    loaders = {
        "own": own_batches((3, 5)),
        "other": own_batches((4, 2)),
        "a": {"dataset": data("a"), "batch_size": 4},
    }
    loader = {"type": "MultiLoader", "loaders": loaders, "mode": mode}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some ranks had more
        run(work_dir, "ddp", loader, accumulate, custom_hooks=[seen]).close()
    return seen.seen


def test_ranks_whose_data_ends_apart_read_the_same_loader_at_the_same_time(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    one, other = two_ranks(names, str(tmp_path), "round_robin", 2)
    assert one == other == 2 * ["own", "other", "a", "own", "other", "a", "own", "a"]
    one, other = two_ranks(names, str(tmp_path / "in order"), "in_order", 1)
    assert one == other == 2 * ["own", "own", "own", "other", "other", "a", "a", "a"]


class Task(TwoTasks):
    """Sees in its batches which loader they are of."""

    def train_step(self, batch: dict[str, Any]) -> Tensor:
        ((name, (x, y)),) = batch.items()
        return cross_entropy(self.net(x), y) * (1.0 if name == "a" else 0.5)


def test_a_custom_loop_builds_several_loaders_too(tmp_path: Path) -> None:
    from stratrun.loops import EpochBasedTrainLoop

    class Loop(EpochBasedTrainLoop):
        def __init__(self, runner: Any, dataloader: Any, *, max_epochs: int, more: Any) -> None:
            super().__init__(runner, dataloader, max_epochs=max_epochs)
            self.more = runner.build_dataloader(more, train=True, name="more")
            self.seen: list[Any] = []

        def run_epoch(self) -> None:
            self.seen += [(list(batch), self.runner.engine.batch.loader) for batch in self.more]
            super().run_epoch()

    runner = Runner(
        Task(),
        train_dataloader=spec("round_robin", as_dict=True),
        train_cfg={"type": Loop, "max_epochs": 1, "more": spec("in_order", as_dict=True)},
        optimizer={"type": "SGD", "lr": 0.1},
        work_dir=str(tmp_path),
        **QUIET,
    )
    runner.train()
    assert runner.iter == 9
    loop: Any = runner._loops["train"]
    assert loop.seen == 6 * [(["a"], "a")] + 3 * [(["b"], "b")]


def test_a_sample_that_is_not_finite_is_named_by_its_loader_and_index(tmp_path: Path) -> None:
    loader = spec("weighted", shuffle=True, weights=WEIGHTS)
    loader["loaders"]["b"]["dataset"].tensors[0][11] = torch.nan
    with pytest.raises(NonFiniteError, match=r"samples [\d, ]*\b11\b[\d, ]* of the data set of loader 'b'"):
        run(str(tmp_path), "single", loader, 2, non_finite="raise")
