"""Ranks that read data of their own, one of them more: all end the epoch at the last batch that each has."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Sampler

from stratrun import Runner
from stratrun.errors import DataError
from tests.problems import QUIET, weights
from tests.ranks import Ranks

Batch = tuple[Tensor, Tensor]
EPOCHS, SIZE = 2, 2


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def made(rank: int, number: int) -> Batch:
    """One batch: a function of where it stands and whose it is."""
    generator = torch.Generator().manual_seed(100 * rank + number)
    inputs = torch.randn(SIZE, 4, generator=generator)
    return inputs, inputs.sum(1, keepdim=True)


class Samples(Dataset[Batch]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Batch:
        inputs, targets = made(index // 100, index % 100 // SIZE)
        return inputs[index % SIZE], targets[index % SIZE]


class Sharded(IterableDataset[Batch]):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return (Samples()[100 * rank() + index] for index in range(self.batches * SIZE))


class Unsized(Sampler[int]):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(range(100 * rank(), 100 * rank() + self.batches * SIZE))


class Stateful:
    """Begins each pass anew, but for the first after a state was loaded."""

    def __init__(self, batches: int) -> None:
        self.batches, self.next, self.loaded = batches, 0, False

    def __iter__(self) -> Iterator[Batch]:
        if not self.loaded:
            self.next = 0
        self.loaded = False
        while self.next < self.batches:
            self.next += 1
            yield made(rank(), self.next - 1)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next, self.loaded = state["next"], True


KINDS: dict[str, Callable[[int], Any]] = {
    "a function": lambda batches: lambda: (made(rank(), number) for number in range(batches)),
    "a sharded stream": lambda batches: {"dataset": Sharded(batches), "batch_size": SIZE, "sharded": True},
    "a sampler": lambda batches: {"dataset": Samples(), "batch_size": SIZE, "sampler": Unsized(batches)},
    "a loader with a state": Stateful,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def plain(batches: int) -> dict[str, Tensor]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in list(range(batches)) * EPOCHS:
        losses = [nn.functional.mse_loss(model(x), y) for x, y in (made(0, number), made(1, number))]
        optimizer.zero_grad()
        (sum(losses) / 2).backward()  # type: ignore[union-attr]
        optimizer.step()
    return weights(model)


def run(data: Any, **options: Any) -> Runner:
    settings = {**QUIET, "train_cfg": {"max_epochs": EPOCHS}, **options}
    return Runner(
        network(),
        loss="mse_loss",
        train_dataloader=data,
        optimizer={"type": "SGD", "lr": 0.1},
        **settings,
    )


def trained(work_dir: str, mine: tuple[int, int]) -> dict[str, Any]:
    found = {}
    for kind, make in KINDS.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            runner = run(make(mine[rank()]), work_dir=f"{work_dir}/{kind}")
            runner.train()
        said = [str(one.message) for one in told if "an epoch ended" in str(one.message)]
        found[kind] = (weights(runner.model), runner.iter, runner.epoch, said)
        runner.close()
    return found


@pytest.mark.parametrize("mine", [(5, 3), (3, 5), (3, 4), (3, 3)])
def test_an_epoch_ends_on_both_ranks_after_the_last_batch_that_both_have(
    mine: tuple[int, int], two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = plain(3)
    first, second = two_ranks(trained, str(tmp_path), mine)
    for kind in KINDS:
        for found, iters, epochs, _ in (first[kind], second[kind]):
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6, msg=kind)
            assert (iters, epochs) == (3 * EPOCHS, EPOCHS)
        assert not second[kind][3]
        if mine == (3, 3):
            assert not first[kind][3]
        else:
            # Once, whatever the number of epochs.
            (said,) = first[kind][3]
            assert "train_dataloader: an epoch ended after 3 batches" in said
            assert f"rank {mine.index(max(mine))} has more" in said


def refused(work_dir: str) -> str:
    runner = run(KINDS["a function"](2 * rank()), work_dir=work_dir)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            runner.train()
    except DataError as error:
        return str(error)
    finally:
        runner.close()
    return ""


def test_both_ranks_refuse_an_epoch_of_which_one_has_nothing(two_ranks: Ranks, tmp_path: Any) -> None:
    for said in two_ranks(refused, str(tmp_path)):
        assert "train_dataloader: an epoch without a single batch" in said
