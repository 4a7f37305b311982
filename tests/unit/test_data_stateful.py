"""Loaders with a state, torchdata's and others, alone and among several: resumed from any batch."""

import copy
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, DistributedSampler, IterableDataset

from stratrun import Runner
from stratrun.hooks import Hook
from tests.feeds import Numbers, make_feed
from tests.problems import QUIET, weights
from tests.ranks import Ranks

stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")
# Of torchdata itself, whose loader asks torch for what is going away.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
EPOCHS = 3
MODES: dict[str, dict[str, Any]] = {
    "round_robin": {"mode": "round_robin"},
    "round_robin, longest": {"mode": "round_robin", "until": "longest"},
    "round_robin, shortest": {"mode": "round_robin", "until": "shortest"},
    "weighted": {"mode": "weighted", "weights": {"short": 1, "own": 1, "ours": 2, "another": 1}},
    "in_order": {"mode": "in_order"},
    "min_size": {"mode": "min_size"},
    "max_size": {"mode": "max_size"},
}


class Goes(IterableDataset[Tensor]):
    """A stream that keeps its own position."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.next = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.next < self.samples:
            self.next += 1
            yield torch.tensor(self.next - 1)
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Counting:
    """A loader each of whose passes has numbers of its own; one that is left is not gone on with."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.passes = self.next = 0
        self.loaded = True

    def __iter__(self) -> Iterator[Tensor]:
        if not self.loaded:
            self.passes, self.next = self.passes + 1, 0
        self.loaded = False
        while self.next < self.batches:
            self.next += 1
            yield torch.tensor([100 * self.passes + self.next - 1])

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.next, self.loaded = state["passes"], state["next"], True


def loader(samples: int, *, stream: bool, workers: int = 0) -> Any:
    dataset: Any = Goes(samples) if stream else Numbers(samples)
    return stateful_dataloader.StatefulDataLoader(dataset, batch_size=2, num_workers=workers)


def several(mode: str, *, stream: bool) -> dict[str, Any]:
    loaders = {
        "short": Counting(1),
        "own": loader(3, stream=stream),
        "ours": {"dataset": Numbers(9), "batch_size": 2, "drop_last": False},
        "another": Counting(4),
    }
    return {"type": "MultiLoader", "loaders": loaders, **MODES[mode]}


def plain(batch: Any) -> Any:
    return {name: one.tolist() for name, one in batch.items()} if isinstance(batch, dict) else batch.tolist()


def run_alone(
    spec: Any, state: Any = None, stop: int | None = None, finish: bool = True
) -> tuple[list[Any], Any]:
    """Batches up to the end of the last epoch, or up to a batch, and the state then."""
    feed, _ = make_feed(spec)
    if state is not None:
        feed.load_state_dict(state)
    taken: list[Any] = []
    while feed.epoch < EPOCHS:
        for batch in feed:
            if len(taken) + 1 == stop and not finish:
                return taken, copy.deepcopy(feed.state_dict())
            taken.append(plain(batch))
            feed.finish()
            if len(taken) == stop:
                return taken, copy.deepcopy(feed.state_dict())
        feed.epoch_done()
    return taken, None


def run_with_workers(spec: Any, *arguments: Any, **options: Any) -> tuple[list[Any], Any]:
    """Keeps the loader from the cycle collector, by which workers would be joined for 5 s each."""
    try:
        return run_alone(spec, *arguments, **options)
    finally:
        gc.collect()


def assert_goes_on(make: Any, stops: Any = None) -> None:
    run = run_alone if stops is None else run_with_workers
    truth, _ = run(make())
    for stop in stops or range(1, len(truth) + 1):
        for finish in (True, False):
            taken, state = run(make(), stop=stop, finish=finish)
            rest, _ = run(make(), state)
            assert taken + rest == truth, (stop, finish)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_among_several_loaders_it_goes_on_from_any_batch(mode: str, stream: bool) -> None:
    assert_goes_on(lambda: several(mode, stream=stream))


def test_a_loader_that_counts_its_passes_goes_on_from_any_batch() -> None:
    assert_goes_on(lambda: Counting(3))


@pytest.mark.parametrize("stream", [False, True])
def test_alone_it_goes_on_from_any_batch(stream: bool) -> None:
    assert_goes_on(lambda: loader(7, stream=stream))


def test_with_workers_it_goes_on_from_a_batch_within_and_at_the_end_of_an_epoch() -> None:
    assert_goes_on(lambda: loader(7, stream=False, workers=2), stops=(2, 4))


@pytest.mark.parametrize("stream", [False, True])
def test_a_state_taken_when_the_end_was_told_but_not_yet_counted_begins_the_next_epoch(stream: bool) -> None:
    truth, _ = run_alone(loader(7, stream=stream))
    feed, _ = make_feed(loader(7, stream=stream))
    first = [plain(batch) for batch in feed]
    state = copy.deepcopy(feed.state_dict())
    assert state["epoch"] == 0
    assert first + run_alone(loader(7, stream=stream), state)[0] == truth


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3,), float(index)) / 24


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def train_step(self, batch: Tensor) -> Tensor:
        return (self.layer(batch) - batch[:, :1].sin()).square().mean()


class Stop(Hook):
    """Saves after so many iterations, and ends the run."""

    priority = 100

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self.at:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


def trained(work_dir: str, among: bool, **options: Any) -> dict[str, Tensor]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.manual_seed(0)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    sampler: Any = DistributedSampler(Rows(), ranks, rank, shuffle=True)
    own: Any = StatefulDataLoader(Rows(), batch_size=2, sampler=sampler, num_workers=2)
    spec: Any = own
    if among:
        loaders = {"own": own, "ours": {"dataset": Rows(), "global_batch_size": 6}}
        spec = {"type": "MultiLoader", "loaders": loaders, "mode": "round_robin", "until": "longest"}
    runner = Runner(
        Mean(),
        train_dataloader=spec,
        train_cfg={"max_epochs": 2, "accumulate": 2},
        optimizer={"type": "Adam", "lr": 0.1},
        randomness={"seed": 1},
        strategy="ddp" if ranks > 1 else "single",
        work_dir=work_dir,
        **{**QUIET, **options},
    )
    runner.train()
    runner.close()
    found = weights(runner.model)
    del runner
    gc.collect()  # see `run_with_workers`
    return found


def resumes(work_dir: str, among: bool) -> None:
    truth = trained(f"{work_dir}/whole", among)
    for at in (3, 8):
        trained(f"{work_dir}/{at}", among, custom_hooks=[Stop(at)])
        found = trained(f"{work_dir}/{at}", among, resume=True)
        for name, value in truth.items():
            assert torch.equal(found[name], value), (at, name)


@pytest.mark.parametrize("among", [False, True])
def test_on_two_ranks_with_workers_a_resumed_run_is_the_unbroken_one_to_the_bit(
    among: bool, two_ranks: Ranks, tmp_path: Path
) -> None:
    two_ranks(resumes, str(tmp_path), among)
