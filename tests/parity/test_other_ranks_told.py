"""What a run that goes on with another number of ranks says of it, and which samples it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import Runner
from stratrun.data.order import epoch_order, indices_at
from stratrun.loggers import Logger, Record
from tests.parity.test_other_ranks import Stop
from tests.ranks import Ranks

SAMPLES = 101
ORDER = indices_at(epoch_order(1, 0, SAMPLES, True), range(SAMPLES))


class Indices(Dataset[Tensor]):
    """Sample i is the number i; those in `gone` must not be read."""

    def __init__(self, gone: tuple[int, ...]) -> None:
        self.gone = frozenset(gone)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        assert index not in self.gone, f"sample {index} was read again"
        return torch.tensor(float(index))


class Seeing(nn.Module):
    """Notes the samples of each of its batches that count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[list[int]] = []

    def train_step(self, batch: Tensor) -> Tensor:
        self.seen.append([int(index) for index in batch.tolist()])
        return (self.weight * batch).mean()


class Listening(Logger):
    def __init__(self) -> None:
        self.said = ""

    def log(self, record: Record) -> None:
        return None

    def say(self, text: str) -> None:
        self.said += text + "\n"


def part(
    work_dir: str, size: dict[str, int], workers: int, gone: tuple[int, ...], stop_at: int | None
) -> Any:
    model, listening = Seeing(), Listening()
    runner = Runner(
        model,
        train_dataloader={"dataset": Indices(gone), "num_workers": workers, **size},
        train_cfg={"max_epochs": 1, "accumulate": 2},
        optimizer={"type": "SGD", "lr": 1e-6},
        default_hooks={"checkpoint": None},
        custom_hooks=[] if stop_at is None else [Stop(stop_at)],
        loggers=[listening],
        randomness={"seed": 1},
        work_dir=work_dir,
        resume="auto",
    )
    runner.train()
    runner.close()
    return {"seen": model.seen, "said": listening.said, "samples": runner.samples}


def in_order(results: list[dict[str, Any]], done: int) -> list[int]:
    """By turns from each rank, batch after batch, without what is repeated to keep ranks in step."""
    order: list[int] = []
    for shares in zip(*(result["seen"] for result in results), strict=True):
        for place in range(max(map(len, shares))):
            order += [share[place] for share in shares if place < len(share)]
    return order[: SAMPLES - done]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("size", "told"),
    [
        ({"batch_size": 3}, [(6, 3), (3, 12)]),
        ({"global_batch_size": 8}, []),
    ],
    ids=["of a rank", "of all ranks"],
)
def test_each_sample_comes_once_in_the_same_global_order_and_another_global_batch_is_told(
    size: dict[str, int],
    told: list[tuple[int, int]],
    workers: int,
    two_ranks: Ranks,
    four_ranks: Ranks,
    tmp_path: Path,
) -> None:
    call = (str(tmp_path), size, workers)
    parts = [two_ranks(part, *call, (), 5)]
    seen = in_order(parts[0], 0)
    parts.append([part(*call, tuple(seen), 8)])
    seen += in_order(parts[1], len(seen))
    parts.append(four_ranks(part, *call, tuple(seen), None))
    seen += in_order(parts[2], len(seen))
    assert seen == ORDER
    assert parts[2][0]["samples"] == SAMPLES
    said = [results[0]["said"] for results in parts]
    assert "saved at WORLD_SIZE=2, now 1" in said[1] and "saved at WORLD_SIZE=1, now 4" in said[2]
    if not told:
        assert "a global batch was" not in "".join(said)
    for text, (then, now) in zip(said[1:], told, strict=False):
        assert f"a global batch was {then} samples, and is {now} from here on" in text
        assert "not be exact" not in text
