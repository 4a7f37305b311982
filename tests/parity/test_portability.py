"""What is saved under any strategy goes on under any other: the same state, and then the same losses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner, registry
from stratrun.checkpoint import StoredCheckpoint
from stratrun.hooks import Hook
from stratrun.storage import Folder
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

# Iterations 1-2 and 3-4 are a window each: the stop leaves one open.
GLOBAL_BATCH, ACCUMULATE, STOP, END = 8, 2, 3, 6
WIDTH, INNER = 6, 10  # which four ranks share out unevenly
PLAN = {"blocks.*.up": "column", "blocks.*.down": "row"}


def _type(spec: Any) -> str:
    return str(spec["type"] if isinstance(spec, dict) else spec)


STRATEGIES: dict[str, tuple[int, Any]] = {
    "single": (1, "single"),
    "ddp 2": (2, "ddp"),
    "fsdp 2": (2, "fsdp"),
    "fsdp 4": (4, "fsdp"),
    "hsdp 2x2": (4, {"type": "hsdp", "replicate": 2}),
    "fsdp x tensor 2x2": (4, {"type": "tensor_parallel", "plan": PLAN, "size": 2}),
}
STRATEGIES = {name: one for name, one in STRATEGIES.items() if _type(one[1]) in registry.STRATEGIES.names()}
COMMON = ("model", "optimizers", "precision", "counters", "schedules", "hooks")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = inputs + self.down(torch.tanh(self.up(self.norm(inputs))))
        return found


class Net(nn.Module):
    """Its losses are sums over tokens, of which samples have different numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("calls", torch.zeros(1))

    calls: Tensor

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, targets = batch
        if self.training:
            self.calls += 1
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        tokens = 1.0 + targets
        losses = cross_entropy(self.last(hidden), targets, reduction="none")
        return {"loss": (losses * tokens).sum() / tokens.sum(), "weight": tokens.sum()}


class Watch(Hook):
    """Saves and ends the run where it is to be stopped; otherwise notes the start and its losses."""

    priority = 100

    def __init__(self, stop: bool) -> None:
        self._stop = stop
        self.start: dict[str, Any] = {}
        self.losses: list[float] = []

    def before_train(self, runner: Any) -> None:
        if not self._stop:
            state = {
                **runner.engine.saved.shared_state(),
                "counters": runner.state.state_dict(),
                "schedules": [one.state_dict() for one in runner.schedules],
                "hooks": {type(hook).__name__: hook.state_dict() for hook in runner.hooks},
            }
            self.start = dict(leaves({key: state[key] for key in COMMON}))

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        weight = float(outputs["weight"])
        summed = runner.engine.mean({"loss": float(outputs["loss"]) * weight, "weight": weight})
        self.losses.append(summed["loss"] / summed["weight"])
        if self._stop and runner.iter == STOP:
            runner.save_checkpoint()
            runner.state.should_stop = True


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested state; of tensors copies, and whole ones."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}/{number}")
    elif isinstance(tree, Tensor):
        whole = tree.full_tensor() if hasattr(tree, "full_tensor") else tree
        yield path, whole.detach().clone()
    else:
        yield path, tree


def run(work_dir: str, strategy: str, *, resume: Any = False, stop: bool = False, **ways: Any) -> Any:
    watch = Watch(stop)
    average = [{"type": "EMAHook", "decay": 0.7}] if ways.pop("average", True) else []
    runner = Runner(
        {"type": Net},
        train_dataloader={"dataset": points(64), "global_batch_size": GLOBAL_BATCH},
        train_cfg={"by_epoch": False, "max_iters": END, "accumulate": ACCUMULATE},
        optimizer={"type": "AdamW", "lr": 0.02, "weight_decay": 0.1},
        param_scheduler={"type": "StepLR", "step_size": 1, "gamma": 0.9, "by_epoch": False},
        clip_grad=0.3,
        strategy=STRATEGIES[strategy][1],
        default_hooks={"checkpoint": None},
        custom_hooks=[*average, watch],
        loggers=(),
        randomness={"seed": 1},
        work_dir=work_dir,
        resume=resume,
        **ways,
    )
    runner.train()
    end = dict(leaves(runner.engine.saved.shared_state()["model"]))
    runner.close()
    return {"start": watch.start, "losses": watch.losses, "end": end}


def saved_in(folder: Path, strategy: str) -> Path:
    return folder / strategy.replace(" ", "-")


def save_all(folder: str, strategies: list[str], ways: dict[str, Any]) -> None:
    for one in strategies:
        run(str(saved_in(Path(folder), one)), one, stop=True, **ways)


def load_all(folder: str, pairs: list[tuple[str, str]], ways: dict[str, Any]) -> dict[tuple[str, str], Any]:
    found = {}
    for one, other in pairs:
        place = saved_in(Path(folder), one) / "checkpoints"
        found[one, other] = run(f"{folder}/{one}-{other}".replace(" ", "-"), other, resume=str(place), **ways)
    return found


def stored_in(folder: Path, strategy: str) -> dict[str, Any]:
    """What was saved, read by this process alone."""
    place = saved_in(folder, strategy) / "checkpoints" / f"step-{STOP:08d}"
    shared = StoredCheckpoint(Folder(str(place))).read().shared
    return dict(leaves({key: shared[key] for key in COMMON}))


class Starts:
    """Runs a function on as many ranks as a strategy has."""

    def __init__(self, two: Ranks, four: Ranks) -> None:
        self._ranks = {2: two, 4: four}

    def save(self, folder: Path, ways: dict[str, Any]) -> None:
        for size in (1, 2, 4):
            chosen = [one for one, (ranks, _) in STRATEGIES.items() if ranks == size]
            self._on(size, save_all, str(folder), chosen, ways)

    def load(self, folder: Path, pairs: list[tuple[str, str]], ways: dict[str, Any]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for size in (1, 2, 4):
            chosen = [pair for pair in pairs if STRATEGIES[pair[1]][0] == size]
            results = self._on(size, load_all, str(folder), chosen, ways) if chosen else [{}]
            for pair in chosen:
                assert all(one[pair]["losses"] == results[0][pair]["losses"] for one in results), pair
            found |= results[0]
        return found

    def _on(self, size: int, function: Any, *args: Any) -> list[Any]:
        return [function(*args)] if size == 1 else self._ranks[size](function, *args)


def differences(found: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    wrong = sorted(found.keys() ^ truth.keys())
    for name in found.keys() & truth.keys():
        one, other = found[name], truth[name]
        if not (torch.equal(one, other) if isinstance(other, Tensor) else one == other):
            wrong.append(name)
    return wrong


def goes_on(found: dict[str, Any], truth: dict[str, Any]) -> bool:
    """Whether losses and weights are those of the run in one process that was never stopped."""
    losses = truth["losses"][STOP:]
    near = found["losses"] == pytest.approx(losses, rel=1e-6)
    for name, value in truth["end"].items():
        torch.testing.assert_close(found["end"][name], value, rtol=2e-5, atol=2e-6, msg=name)
    return bool(near and found["end"].keys() == truth["end"].keys())


def test_each_strategy_goes_on_with_the_state_of_each_and_to_the_same_losses(
    two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path
) -> None:
    starts = Starts(two_ranks, four_ranks)
    truth = run(str(tmp_path / "whole"), "single")
    starts.save(tmp_path, {})
    pairs = [(one, other) for one in STRATEGIES for other in STRATEGIES]
    found = starts.load(tmp_path, pairs, {})
    for one, other in pairs:
        assert not differences(found[one, other]["start"], stored_in(tmp_path, one)), (one, other)
        assert goes_on(found[one, other], truth), (one, other)
