"""Ranks as threads of one process, and samples for them, for tests of what an evaluator exchanges."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.evaluation import Evaluator
from stratrun.state import BatchInfo

PATIENCE = 20.0
SAMPLES, CLASSES = 101, 7


def data() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(SAMPLES, CLASSES, generator=random)
    return logits, torch.randint(CLASSES, (SAMPLES,), generator=random)


LOGITS, LABELS = data()


def batch_of(places: list[int]) -> tuple[Any, Any]:
    logits, labels = LOGITS[places], LABELS[places]
    return (torch.zeros(len(places), 2), labels), {
        "logits": logits,
        "loss": nn.functional.cross_entropy(logits, labels),
    }


@dataclass
class Board:
    """Where ranks leave what they send. A rank that stays away breaks it for the others."""

    world_size: int
    sent: list[bytes] = field(default_factory=list)
    barrier: Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.sent = [b""] * self.world_size
        self.barrier = Barrier(self.world_size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        # Through bytes, as between processes: what cannot be pickled fails, nothing is shared.
        self.sent[rank] = pickle.dumps(value)
        self.barrier.wait(PATIENCE)
        values = [pickle.loads(message) for message in self.sent]
        self.barrier.wait(PATIENCE)
        return values


@dataclass
class ThreadRank:
    """The part of `Collectives` that an evaluation uses, counting its exchanges."""

    board: Board
    rank: int
    exchanges: int = 0

    @classmethod
    def alone(cls) -> "ThreadRank":
        return cls(Board(1), 0)

    @property
    def world_size(self) -> int:
        return self.board.world_size

    def gather_to_main(self, value: Any) -> list[Any] | None:
        self.exchanges += 1
        values = self.board.exchange(self.rank, value)
        return values if self.rank == 0 else None

    def from_main(self, value: Any) -> Any:
        self.exchanges += 1
        return self.board.exchange(self.rank, value)[0]


def shares(samples: int, world_size: int, batch_size: int) -> list[list[list[int]]]:
    """Positions of each batch of each rank: every sample once, no padding, so ranks may have none."""
    step = world_size * batch_size
    starts = range(0, samples, step)
    ends = [(start, min(start + step, samples)) for start in starts]
    return [
        [list(range(a + rank, b, world_size)) for a, b in ends if a + rank < b] for rank in range(world_size)
    ]


def on_ranks(run: Callable[[ThreadRank], Any], world_size: int) -> list[Any]:
    """The result, or the exception, of each rank."""
    board = Board(world_size)

    def guarded(rank: int) -> Any:
        try:
            return run(ThreadRank(board, rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(guarded, range(world_size)))


def evaluated(
    make: Callable[[], Any],
    feed: Callable[[list[int]], tuple[Any, Any]],
    samples: int,
    world_size: int,
    batch_size: int,
    *,
    positions: bool = True,
    idle: tuple[int, ...] = (),
) -> list[Any]:
    """What each rank gets when all of them evaluate `samples` samples together.

    Args:
        make: Metrics for one rank.
        feed: (batch, outputs) for positions.
        positions: Whether the loader tells them.
        idle: Ranks that get no batch; the others share all samples.
    """
    busy = shares(samples, world_size - len(idle), batch_size)
    parts = [[] if rank in idle else busy.pop(0) for rank in range(world_size)]

    def run(rank: ThreadRank) -> Any:
        info = BatchInfo()
        evaluator = Evaluator(make())
        evaluator.bind(rank, info)
        for places in parts[rank.rank]:
            info.size, info.positions = len(places), places if positions else None
            evaluator.process(*feed(places))
        return evaluator.evaluate()

    return on_ranks(run, world_size)
