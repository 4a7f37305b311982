"""Data without a length: the window that the end of the data cuts short is averaged over what it has."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from tests.problems import perceptron, points, trained, weights
from tests.ranks import Ranks

BATCH = 3


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = points(self.samples).tensors
        return iter(list(zip(inputs, targets, strict=True)))


def plain(
    samples: int, batch: int, accumulate: int, limit: float | None, max_iters: int | None = None
) -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(samples).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    starts = list(range(0, samples, batch))
    epochs = [starts, starts] if max_iters is None else [starts, starts[: max_iters - len(starts)]]
    for epoch in epochs:
        for first in range(0, len(epoch), accumulate):
            window = epoch[first : first + accumulate]
            for start in window:
                part = slice(start, start + batch)
                (cross_entropy(model(inputs[part]), targets[part]) / len(window)).backward()
            if limit:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model)


def with_runner(
    samples: int, accumulate: int, limit: float | None, train_cfg: dict[str, int], work_dir: str
) -> tuple[dict[str, Tensor], tuple[int, int, int]]:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": Stream(samples), "batch_size": BATCH},
        train_cfg={**train_cfg, "accumulate": accumulate},
        optimizer={"type": "SGD", "lr": 0.5, "momentum": 0.9},
        clip_grad=limit,
        work_dir=work_dir,
    )
    state = runner.state
    return weights(runner.model), (state.iter, state.step, state.samples)


@pytest.mark.parametrize("limit", [None, 0.3])
@pytest.mark.parametrize(("accumulate", "updates"), [(1, 16), (3, 6), (10, 2)])
def test_one_process_reaches_the_weights_of_a_plain_loop(
    accumulate: int, updates: int, limit: float | None, tmp_path: Any
) -> None:
    found, counts = with_runner(22, accumulate, limit, {"max_epochs": 2}, str(tmp_path))
    torch.testing.assert_close(found, plain(22, BATCH, accumulate, limit), rtol=1e-5, atol=1e-6)
    assert counts == (16, updates, 44)


@pytest.mark.parametrize("limit", [None, 0.3])
@pytest.mark.parametrize("samples", [23, 19])
@pytest.mark.parametrize(("accumulate", "updates"), [(1, 8), (3, 4), (10, 2)])
def test_two_ranks_reach_the_weights_of_one_plain_loop(
    accumulate: int, updates: int, samples: int, limit: float | None, two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = plain(samples, BATCH * 2, accumulate, limit)
    for found, counts in two_ranks(with_runner, samples, accumulate, limit, {"max_epochs": 2}, str(tmp_path)):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
        assert counts == (8, updates, samples * 2)


def test_a_last_window_that_the_number_of_iterations_cuts_is_averaged_over_its_batches(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    found, counts = with_runner(22, 3, None, {"max_iters": 13}, str(tmp_path))
    torch.testing.assert_close(found, plain(22, BATCH, 3, None, 13), rtol=1e-5, atol=1e-6)
    assert counts == (13, 5, 22 + 15)
    for spread, counts in two_ranks(with_runner, 22, 3, None, {"max_iters": 6}, str(tmp_path)):
        torch.testing.assert_close(spread, plain(22, BATCH * 2, 3, None, 6), rtol=1e-5, atol=1e-6)
        assert counts == (6, 3, 22 + 12)
