"""What becomes of the other ranks when one fails."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stratrun.hooks import Hook
from stratrun.strategies import Strategy
from stratrun.testing.compare import differences
from stratrun.testing.problem import Recipe
from stratrun.testing.report import NotChecked, Wrong
from stratrun.testing.running import Part, Place, train

_TEXT = "the data of this rank is bad"
_FAILS_AT = 3

_NOT_FINITE = (
    "what is not finite on one rank must reach the gradients of all, or the parts that each has of them"
)


class Unsavable(Hook):
    """Has state that cannot be had on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.asked = 0

    def before_save_checkpoint(self) -> None:
        if int(os.environ["RANK"]) == self.rank:
            raise ValueError(_TEXT)


class FailingLoss:
    """Fails in one step of one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.calls: int = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == _FAILS_AT and int(os.environ["RANK"]) == self.rank:
            raise ValueError(_TEXT)
        loss: Tensor = cross_entropy(outputs, targets)
        return loss


class Updates(Hook):
    """Tells how many updates were made, after a run that failed too."""

    def __init__(self) -> None:
        self.count: Callable[[], int] = lambda: 0

    def before_train(self, runner: Any) -> None:
        self.count = lambda: int(runner.step)


class Spiking:
    """The loss is infinite in one step of the ranks from `rank` on, or of every rank."""

    def __init__(self, call: int, rank: int | None = None) -> None:
        self.call = call
        self.rank = rank
        self.calls: int = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        loss: Tensor = cross_entropy(outputs, targets)
        here = self.rank is None or int(os.environ["RANK"]) >= self.rank
        return loss * torch.inf if here and self.calls == self.call else loss


def save(place: Place, recipe: Recipe, folder: str) -> str:
    found = place(_failing_save, recipe, f"{folder}/failed-save", place.world_size - 1)
    for rank, told in enumerate(found):
        if told is None:
            raise Wrong(f"rank {rank} went on, though rank {place.world_size - 1} could not save")
    kinds = sorted({told[0] for told in found})
    if len(kinds) > 1:
        raise Wrong(f"the ranks raised different errors: {', '.join(kinds)}")
    return f"{kinds[0]} on all"


def rank(place: Place, recipe: Recipe, folder: str) -> str:
    assert place.ranks is not None
    last = place.world_size - 1
    recipe = recipe.but(epochs=1)
    target = Path(folder, "failed-rank")
    target.mkdir()
    start = time.monotonic()
    place.ranks.outcomes(_failing_rank, place.part, recipe, str(target), last)
    seconds = time.monotonic() - start
    told = {i: json.loads(f.read_text()) for i in range(last + 1) if (f := target / f"{i}.json").exists()}
    if told.get(last, ["", ""])[0] != "ValueError":
        raise Wrong(f"the rank that failed raised {told.get(last)} instead of its own ValueError")
    for i in range(last):
        if i not in told:
            raise Wrong(
                f"rank {i} still waited after {seconds:.0f} s",
                "what waits for other ranks must go through a process group that has a timeout",
            )
        if told[i][2] > _FAILS_AT - 1:
            raise Wrong(
                f"rank {i} updated {told[i][2]} times, though rank {last} failed in batch {_FAILS_AT}",
                "an exchange that fails must raise: without what it was to bring, an update is another one",
            )
    return f"the others raised {told[0][0]} within {max(told[i][3] for i in range(last)):.1f} s"


def overflow(place: Place, recipe: Recipe, folder: str, built: Strategy) -> str:
    if built.precisions is not None and "16-mixed" not in built.precisions:
        raise NotChecked(f"it works with {', '.join(sorted(built.precisions))} only")
    first = place.world_size - built.ranks_per_batch
    # A low scale, so that nothing else overflows.
    found = place.trained(
        recipe.but(epochs=1),
        folder,
        precision={"type": "16-mixed", "init_scale": 256.0},
        loss=Spiking(3, first if first > 0 else None),
        non_finite="ignore",
    )
    for rank, seen in enumerate(found):
        if seen.counters["skipped"] != 1:
            raise Wrong(
                f"on rank {rank} {seen.counters['skipped']} updates were dropped instead of 1",
                _NOT_FINITE,
            )
        if wrong := differences(seen.weights, found[0].weights, 0.0):
            raise Wrong(f"rank {rank} and rank 0 differ: {wrong}", _NOT_FINITE)
    return f"{found[0].counters['step']} updates and 1 dropped"


def _failing_save(part: Part, recipe: Recipe, work_dir: str, which: int) -> Any:
    try:
        train(part, recipe, work_dir, default_hooks=_saving(), custom_hooks=[Unsavable(which)])
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def _saving() -> dict[str, Any]:
    return {"checkpoint": {"interval": 1}, "logger": None}


def _failing_rank(part: Part, recipe: Recipe, folder: str, which: int) -> None:
    """Runs on ranks whose group is thrown away afterwards: the one that fails ends as a program would."""
    own = int(os.environ["RANK"])
    known = Part(part.strategy, part.precision, part.build, own)
    start, told, updates = time.monotonic(), ["", ""], Updates()
    try:
        train(known, recipe, folder, loss=FailingLoss(which), custom_hooks=[updates])
    except BaseException as error:
        told = [type(error).__name__, str(error)[:300]]
    Path(folder, f"{own}.json").write_text(json.dumps([*told, updates.count(), time.monotonic() - start]))
    os._exit(1)
