"""What is saved under any strategy goes on under any other: the same state, and then the same losses."""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.cli import main
from stratrun.hooks import Hook
from stratrun.spread import Divided, local_part, spread_as
from stratrun.storage import Folder
from stratrun.strategies.logical import WAYS
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

# Iterations 1-2 and 3-4 are a window each: the stop leaves one open.
GLOBAL_BATCH, ACCUMULATE, STOP, END = 8, 2, 3, 5
WIDTH, INNER = 6, 10  # which four ranks share out unevenly
# torch asks for it while it traces, and hides its own warning in a way that an error is not hidden by.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
PLAN = {"blocks.*.up": "column", "blocks.*.down": "row"}


STRATEGIES: dict[str, tuple[int, Any]] = {
    "single": (1, "single"),
    "ddp 2": (2, "ddp"),
    "ddp 2 divided": (2, {"type": "ddp", "shard_optimizer": True}),
    "fsdp 2": (2, "fsdp"),
    "fsdp 4": (4, "fsdp"),
    "hsdp 2x2": (4, {"type": "hsdp", "replicate": 2}),
    "fsdp x tensor 2x2": (4, {"type": "tensor_parallel", "plan": PLAN, "size": 2}),
}
# Keeps the gradients of a window to each rank, until a save brings them together.
UNSHARDED = "fsdp 2 unsharded"
OTHERS = {"ddp 2": "fsdp 4", "fsdp 2": "hsdp 2x2", "fsdp x tensor 2x2": "single"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "otherwise": {"activation_checkpointing": True, "compile": {"backend": "eager"}, "average": False},
}
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
    """Saves and ends the run where it is to be stopped; otherwise notes how it starts and its losses."""

    priority = 100

    def __init__(self, saved: str | None) -> None:
        self._saved = saved
        self.wrong: list[str] = []
        self.losses: list[float] = []

    def before_train(self, runner: Any) -> None:
        if self._saved is not None:
            state = {
                **runner.engine.saved.shared_state(),
                "counters": runner.state.state_dict(),
                "schedules": [one.state_dict() for one in runner.schedules],
                "hooks": {type(hook).__name__: hook.state_dict() for hook in runner.hooks},
            }
            stored = stored_in(self._saved)
            if not {"EMAHook"} <= state["hooks"].keys() & stored["hooks"].keys():
                state["hooks"], stored["hooks"] = {}, {}  # it begins anew, or is dropped
            for key, one in state["optimizers"].items():
                if isinstance(one["state"], Divided):  # that of this rank's parameters
                    whole = stored["optimizers"][key]
                    whole["state"] = {name: whole["state"][name] for name in one["state"]}
            wrong = differences({key: state[key] for key in COMMON}, stored)
            # Where parameters are spread in several ways none is fused: how updates are made is a run's own.
            self.wrong = [name for name in wrong if name.rpartition("/")[2] not in WAYS]

    def after_train_iter(self, runner: Any, outputs: Any) -> None:
        weight = float(outputs["weight"])
        summed = runner.engine.mean({"loss": float(outputs["loss"]) * weight, "weight": weight})
        self.losses.append(summed["loss"] / summed["weight"])
        if self._saved is None and runner.iter == STOP:
            runner.save_checkpoint()
            runner.request("stop", agreed=True)


def stored_in(place: str) -> dict[str, Any]:
    """What was saved, read whole, as a process without any others does."""
    shared = StoredCheckpoint(Folder(place).child(f"checkpoints/step-{STOP:08d}")).read().shared
    return {key: shared[key] for key in COMMON}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}/{number}")
    else:
        yield path, tree


def differences(found: Any, truth: Any, rtol: float = 0.0, atol: float = 0.0) -> list[str]:
    """Where two states differ, of which the second is whole, and the first may be this rank's part."""
    some, others = dict(leaves(found)), dict(leaves(truth))
    wrong = sorted(some.keys() ^ others.keys())
    for name in some.keys() & others.keys():
        one, other = some[name], others[name]
        if isinstance(other, Tensor):
            mine, theirs = local_part(one), local_part(spread_as(other, one))
            alike = one.shape == other.shape and one.dtype == other.dtype
            alike = alike and torch.allclose(mine, theirs, rtol=rtol, atol=atol)
        else:
            alike = bool(one == other)
        wrong += [] if alike else [name]
    return wrong


def run(
    work_dir: str, strategy: str, *, saved: str | None = None, truth: Any = None, **ways: Any
) -> dict[str, Any]:
    """A run that is stopped; or with `saved` one that goes on from there, and is held against `truth`."""
    watch = Watch(saved)
    average = [{"type": "EMAHook", "decay": 0.7}] if ways.pop("average", True) else []
    runner = Runner(
        {"type": Net},
        train_dataloader={"dataset": points(64), "global_batch_size": GLOBAL_BATCH, "shuffle": False},
        train_cfg={"by_epoch": False, "max_iters": END, "accumulate": ACCUMULATE},
        optimizer={"type": "AdamW", "lr": 0.02, "weight_decay": 0.1},
        param_scheduler={"type": "StepLR", "step_size": 1, "gamma": 0.9, "by_epoch": False},
        clip_grad=0.3,
        strategy=spec_of(strategy)[1],
        default_hooks={"checkpoint": None},
        custom_hooks=[*average, watch],
        loggers=(),
        randomness={"seed": 1},
        work_dir=work_dir,
        resume=False if saved is None else f"{saved}/checkpoints",
        **ways,
    )
    runner.train()
    end = runner.engine.saved.shared_state()["model"]
    wrong = watch.wrong
    if truth is not None:
        wrong = wrong + differences({"end": end}, {"end": truth}, rtol=2e-5, atol=2e-6)
    runner.close()
    return {"losses": watch.losses, "wrong": wrong}


def uninterrupted() -> tuple[list[float], dict[str, Tensor]]:
    """Losses from where others go on, and the weights at the end, by a plain loop in one process."""
    torch.manual_seed(1)
    model, losses = Net(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)
    window: list[dict[str, Tensor]] = []
    parts = zip(*(tensor.split(GLOBAL_BATCH) for tensor in points(64).tensors), strict=True)
    for number, batch in enumerate(islice(parts, END)):
        outputs = model.train_step(batch)
        losses.append(outputs["loss"].item())
        (outputs["loss"] * outputs["weight"]).backward()
        window.append(outputs)
        if len(window) == ACCUMULATE or number == END - 1:
            total = sum(one["weight"] for one in window)
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad /= total
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            window.clear()
    return losses[STOP:], model.state_dict()


def spec_of(strategy: str) -> tuple[int, Any]:
    return (2, {"type": "fsdp", "accumulate": "unsharded"}) if strategy == UNSHARDED else STRATEGIES[strategy]


def place_of(folder: str, strategy: str, kind: str) -> str:
    return f"{folder}/{kind}/{strategy.replace(' ', '-')}"


def save_all(folder: str, strategies: list[tuple[str, str]]) -> None:
    for one, kind in strategies:
        run(place_of(folder, one, kind), one, **KINDS[kind])


def load_all(folder: str, strategies: list[str], other: str, kinds: tuple[str, str], truth: Any) -> Any:
    """Go on under another strategy; the kinds are that of what was saved, and of the run that goes on."""
    found = {}
    with tempfile.TemporaryDirectory() as work_dir:
        for number, one in enumerate(strategies):
            saved = place_of(folder, one, kinds[0])
            ways = KINDS[kinds[1]]
            found[one] = run(f"{work_dir}/{number}", other, saved=saved, truth=truth, **ways)
    return found


class Saved:
    """What was saved under each strategy, and how it goes on."""

    def __init__(self, folder: Path, two: Ranks, four: Ranks) -> None:
        self.folder = str(folder)
        self._ranks = {2: two, 4: four}
        self._losses, self._end = uninterrupted()
        kinds = [(one, "plain") for one in [*STRATEGIES, UNSHARDED]] + [(one, "otherwise") for one in OTHERS]
        for size in (1, 2, 4):
            chosen = [(one, kind) for one, kind in kinds if spec_of(one)[0] == size]
            self._on(size, save_all, self.folder, chosen)

    def go_on(self, strategies: list[str], other: str, kinds: tuple[str, str] = ("plain", "plain")) -> None:
        """On as many ranks as the other strategy has, from the same state to the same losses and weights."""
        arguments = (self.folder, strategies, other, kinds, self._end)
        for found in self._on(spec_of(other)[0], load_all, *arguments):
            for one in strategies:
                assert not found[one]["wrong"], (one, other)
                assert found[one]["losses"] == pytest.approx(self._losses, rel=1e-6), (one, other)

    def _on(self, size: int, function: Any, *args: Any) -> list[Any]:
        return [function(*args)] if size == 1 else self._ranks[size](function, *args)


@pytest.fixture(scope="module")
def saved(two_ranks: Ranks, four_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("portable"), two_ranks, four_ranks)


@pytest.mark.parametrize("other", STRATEGIES)
def test_what_is_saved_under_each_strategy_goes_on_to_the_same_losses_under(other: str, saved: Saved) -> None:
    saved.go_on(list(STRATEGIES), other)


@pytest.mark.parametrize("one", OTHERS)
def test_averages_recomputing_and_compiling_come_and_go_with_what_was_saved_under(
    one: str, saved: Saved
) -> None:
    saved.go_on([one], OTHERS[one], ("otherwise", "plain"))
    saved.go_on([OTHERS[one]], one, ("plain", "otherwise"))


def test_gradients_that_ranks_keep_apart_are_brought_together_for_a_save(saved: Saved) -> None:
    saved.go_on([UNSHARDED], "single")
    saved.go_on([UNSHARDED, "ddp 2", "fsdp 4"], UNSHARDED)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_weights_of_each_are_exported_by_a_process_alone(weights: str, saved: Saved) -> None:
    assert not torch.distributed.is_initialized()
    for one in STRATEGIES:
        work_dir = place_of(saved.folder, one, "plain")
        output = f"{work_dir}/{weights}.safetensors"
        assert main(["ckpt", "export", work_dir, "-o", output, "--weights", weights]) == 0
        state = stored_in(work_dir)
        truth = state["model"] if weights == "model" else state["hooks"]["EMAHook"]["averages"]
        assert not differences(load_file(output), truth), one
        Net().load_state_dict(load_file(output))
