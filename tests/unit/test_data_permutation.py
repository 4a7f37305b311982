"""The order of large data sets, which is computed where it is read."""

import math

import pytest
import torch

from stratrun.data import order
from stratrun.data.order import epoch_order, indices_at
from stratrun.data.permutation import Permutation

LENGTHS = [1, 2, 3, 10, 1000, 4097, 100_003]


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("key", [0, 2**63 - 1])
def test_every_number_stands_somewhere_once(samples: int, key: int) -> None:
    assert sorted(Permutation(samples, key).at(range(samples))) == list(range(samples))


def test_all_orders_of_a_few_come_up_about_as_often_as_one_another() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(2400):
        found = tuple(Permutation(4, key).at(range(4)))
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24
    assert all(60 < count < 145 for count in counts.values()), counts  # 100, and four deviations of 10


@pytest.mark.parametrize("key", range(3))
def test_a_large_order_looks_like_one_that_was_drawn(key: int) -> None:
    samples = 100_003
    found = torch.tensor(Permutation(samples, key).at(range(samples)), dtype=torch.float64)
    places = torch.arange(samples, dtype=torch.float64)
    # Neither place and number nor neighbours have to do with one another: 4 deviations of 1 / sqrt(n).
    bound = 4 / math.sqrt(samples)
    assert abs(torch.corrcoef(torch.stack([places, found]))[0, 1]) < bound
    assert abs(torch.corrcoef(torch.stack([found[:-1], found[1:]]))[0, 1]) < bound
    # Of 400 fields of place by number each has about 250; randperm has the same spread of the counts.
    fields = (places * 20 // samples) * 20 + found * 20 // samples
    counts = torch.bincount(fields.long(), minlength=400).double()
    expected = samples / 400
    assert 300 < float(((counts - expected) ** 2 / expected).sum()) < 425  # of 361 degrees of freedom
    steps = found.diff()
    assert int((steps == 1).sum()) <= 6
    assert int((found == places).sum()) <= 6
    # Low digits are as mixed as high ones.
    parity = (found.long() % 2).double()
    assert abs(torch.corrcoef(torch.stack([parity[:-1], parity[1:]]))[0, 1]) < bound


def test_what_stands_at_a_position_does_not_depend_on_how_it_is_asked_for() -> None:
    whole = Permutation(10_007, 3).at(range(10_007))
    for step in (1, 3, 64):
        asked = Permutation(10_007, 3)
        for start in (0, 17, 5000, 17, 9990):
            positions = range(start, min(start + 10 * step, 10_007), step)
            assert asked.at(positions) == [whole[at] for at in positions]
    assert asked.at(range(5, 5)) == []


def test_another_key_gives_another_order() -> None:
    orders = [tuple(Permutation(1000, key).at(range(1000))) for key in range(20)]
    assert len(set(orders)) == 20


def test_an_epoch_above_the_limit_is_a_permutation_by_seed_and_epoch_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order, "LISTED", 100)

    def epoch(seed: int, number: int, samples: int = 101) -> list[int]:
        return indices_at(epoch_order(seed, number, samples, True), range(samples))

    assert isinstance(epoch_order(3, 5, 101, True), Permutation)
    assert isinstance(epoch_order(3, 5, 100, True), torch.Tensor)
    assert sorted(epoch(3, 5)) == list(range(101))
    torch.manual_seed(99)
    assert epoch(3, 5) == epoch(3, 5)
    assert epoch(3, 6) != epoch(3, 5) != epoch(4, 5)
    assert epoch_order(3, 5, 101, False) == range(101)
