"""Losses with a weight: one effective batch gives one gradient, however it is split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from tests.problems import CLASSES, FEATURES, perceptron, trained, weights
from tests.ranks import Ranks

LENGTH = 4
EFFECTIVE = 12
SPLITS = {"1x12": (12, 1), "2x6": (6, 2), "3x4": (4, 3)}


def sequences(samples: int) -> TensorDataset:
    """Sequences of up to `LENGTH` tokens, a few of them without any."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, LENGTH, FEATURES, generator=generator)
    targets = torch.randint(CLASSES, (samples, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH + 1, (samples,), generator=generator)
    return TensorDataset(inputs, targets, torch.arange(LENGTH) < lengths[:, None])


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over the tokens, and their number."""
    inputs, targets, mask = batch
    losses = cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * mask.flatten()).sum() / mask.sum().clamp_min(1), mask.sum()


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        loss, tokens = mean_loss(self.net, batch)
        return {"loss": loss, "weight": tokens}


def plain(samples: int, max_norm: float | None) -> dict[str, Tensor]:
    """The whole effective batch at once."""
    model, columns = perceptron(), sequences(samples).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        for start in range(0, samples, EFFECTIVE):
            x, y, mask = (column[start : start + EFFECTIVE] for column in columns)
            mean_loss(model, (x, y, mask))[0].backward()
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def with_runner(
    samples: int,
    accumulate: int,
    max_norm: float | None,
    work_dir: str,
    batch: dict[str, int] | int,
    strategy: str = "auto",
) -> dict[str, Tensor]:
    """`batch`: how the loader makes them, or of how many samples those are that come ready for all ranks."""
    model = Tagger()
    data: Any = {"dataset": sequences(samples), "shuffle": False}
    runner = trained(
        model,
        train_dataloader=shared_out(samples, batch) if isinstance(batch, int) else {**data, **batch},
        train_cfg={"max_epochs": 2, "accumulate": accumulate},
        optimizer={"type": "SGD", "lr": 0.5, "momentum": 0.9},
        clip_grad=max_norm,
        strategy=strategy,
        work_dir=work_dir,
    )
    found = runner.engine.saved.shared_state()["model"]
    return {name.removeprefix("net."): whole(value) for name, value in found.items()}


def whole(value: Any) -> Tensor:
    full: Tensor = (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
    return full


def shared_out(samples: int, batch: int) -> list[tuple[Tensor, ...]]:
    """Ready batches of one rank, for which they need not be of as many samples as those of another."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    columns = sequences(samples).tensors
    return [
        tuple(column[start : start + batch][rank::size] for column in columns)
        for start in range(0, samples, batch)
    ]


# 31 samples: the last window has 7, which leaves a rank without a sample where batches are of 6.
@pytest.mark.parametrize("samples", [36, 31])
@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("split", SPLITS)
def test_an_effective_batch_gives_one_gradient_however_it_is_split(
    split: str, max_norm: float | None, samples: int, two_ranks: Ranks, tmp_path: Any
) -> None:
    size, accumulate = SPLITS[split]
    truth = plain(samples, max_norm)
    alone = with_runner(samples, accumulate, max_norm, str(tmp_path), {"batch_size": size})
    torch.testing.assert_close(alone, truth, rtol=1e-6, atol=1e-6)
    for strategy in ("ddp", "fsdp"):
        batch = {"global_batch_size": size}
        spread = two_ranks(with_runner, samples, accumulate, max_norm, str(tmp_path), batch, strategy)
        for rank in spread:
            torch.testing.assert_close(rank, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("split", SPLITS)
def test_so_it_does_on_four_ranks(split: str, strategy: str, four_ranks: Ranks, tmp_path: Path) -> None:
    size, accumulate = SPLITS[split]
    # Four ranks cannot have as many samples each of a batch of 6; they get 2, 2, 1 and 1.
    batch = {"global_batch_size": size} if size % 4 == 0 else size
    for samples in (36, 31) if size % 4 == 0 else (36,):
        for max_norm in (None, 0.1):
            truth = plain(samples, max_norm)
            options = (samples, accumulate, max_norm, str(tmp_path), batch, strategy)
            for rank in four_ranks(with_runner, *options):
                torch.testing.assert_close(rank, truth, rtol=1e-6, atol=1e-6)


class Plain(nn.Module):
    """Its loss has a weight in every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()
        self.calls = 0

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        loss, tokens = mean_loss(self.net, batch)
        return {"loss": loss, "weight": tokens} if self.calls % 2 else {"loss": loss}


def test_a_weight_that_comes_and_goes_within_a_window_is_refused(tmp_path: Any) -> None:
    with pytest.raises(Exception, match="'weight' for one batch of an accumulation window"):
        trained(
            Plain(),
            train_dataloader={"dataset": sequences(12), "batch_size": 4},
            train_cfg={"max_epochs": 1, "accumulate": 3},
            optimizer={"type": "SGD", "lr": 0.5},
            work_dir=str(tmp_path),
        )


def test_gradients_that_two_optimizers_share_are_divided_by_the_weight_once(tmp_path: Path) -> None:
    model, twin, columns = Tagger(), Tagger(), sequences(EFFECTIVE).tensors
    parts = (["net.0"], ["net.0", "net.2"])
    trained(
        model,
        train_dataloader={"dataset": sequences(EFFECTIVE), "batch_size": 6, "shuffle": False},
        train_cfg={"max_epochs": 2, "accumulate": 2},
        optimizer={str(i): {"type": "SGD", "lr": 0.1, "params": part} for i, part in enumerate(parts)},
        work_dir=str(tmp_path),
    )
    both = [torch.optim.SGD(some, lr=0.1) for some in (twin.net[0].parameters(), twin.parameters())]
    for _ in range(2):
        loss, _ = mean_loss(twin.net, columns)  # type: ignore[arg-type]
        both[1].zero_grad()
        loss.backward()
        for one in both:
            one.step()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
