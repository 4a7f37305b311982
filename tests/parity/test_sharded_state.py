"""State of models that are spread over ranks: resumed to the bit, loaded in part, averaged and evaluated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.checkpoint import StoredCheckpoint, export_weights
from stratrun.checkpoint.blocks import BlockReader
from stratrun.hooks import Hook
from stratrun.spread import is_spread, local_part, spread_as
from stratrun.storage import Folder
from tests.parity.test_other_ranks import Stop
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

STOP, END = 3, 6  # of windows of 2
EVERY = ["model", "optimizer", "scheduler", "precision", "counters", "hooks", "data", "rng"]


class Net(nn.Module):
    def __init__(self, width: int = 6, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        self.first = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.last = nn.Linear(width, CLASSES)
        self.tied = self.last

    def forward(self, batch: tuple[Tensor, Tensor], mode: str) -> Any:
        inputs, targets = batch
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = nn.functional.dropout(torch.tanh(block(hidden)), self.dropout, self.training)
        logits = self.tied(hidden)
        if mode == "predict":
            return logits
        return cross_entropy(logits, targets) if mode == "loss" else (logits, targets)


def started(
    work_dir: Any,
    *,
    stop: int | None = None,
    width: int = 6,
    dropout: float = 0.3,
    held: Any = None,
    **options: Any,
) -> Runner:
    hooks = [
        {"type": "EMAHook", "decay": 0.7},
        *([] if stop is None else [Stop(stop)]),
        *([held] if held else []),
    ]
    form: dict[str, Any] = {
        "train_dataloader": {"dataset": points(64), "global_batch_size": 8},
        "train_cfg": {"by_epoch": False, "max_iters": END, "accumulate": 2, "val_interval": 2},
        "val_dataloader": {"dataset": points(14, seed=1), "batch_size": 4},
        "val_evaluator": {"type": "Accuracy"},
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "strategy": "fsdp" if torch.distributed.is_initialized() else "single",
        **options,
    }
    return Runner(
        {"type": Net, "width": width, "dropout": dropout},
        default_hooks={"checkpoint": None},
        custom_hooks=hooks,
        loggers=(),
        randomness={"seed": 1},
        work_dir=str(work_dir),
        **form,
    )


def parts_of(tree: Any) -> Any:
    """The same with the part of each tensor that this rank holds."""
    if isinstance(tree, dict):
        return {name: parts_of(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [parts_of(value) for value in tree]
    return local_part(tree).clone() if isinstance(tree, Tensor) else tree


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def ended(work_dir: str, **options: Any) -> Any:
    """What a run ends with on this rank."""
    runner = started(work_dir, **options)
    metrics = runner.train()
    (average,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    state = runner.engine.saved.shared_state()
    assert all(is_spread(value) for value in state["model"].values())
    runner.close()
    return parts_of({**state, "averages": average.state_dict(), "metrics": metrics})


def broken_off(work_dir: str, stops: tuple[int, ...]) -> list[bool]:
    truth = ended(f"{work_dir}/whole")
    found = []
    for stop in stops:
        ended(f"{work_dir}/{stop}", stop=stop)
        found.append(same(ended(f"{work_dir}/{stop}", resume=True), truth))
    return found


def test_two_ranks_and_four_resume_to_the_bit(two_ranks: Ranks, four_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(broken_off, str(tmp_path / "two"), (STOP, STOP + 1)) == [[True, True]] * 2
    assert four_ranks(broken_off, str(tmp_path / "four"), (STOP,)) == [[True]] * 4


def saved_at_once(work_dir: str) -> bool:
    truth = ended(f"{work_dir}/whole")
    ended(f"{work_dir}/cut", stop=STOP, checkpoint_cfg={"asynchronous": False})
    return same(ended(f"{work_dir}/cut", resume=True), truth)


def test_what_is_saved_while_training_waits_is_resumed_to_the_bit(two_ranks: Ranks, tmp_path: Path) -> None:
    assert two_ranks(saved_at_once, str(tmp_path)) == [True, True]


def predicted(work_dir: str, truth: dict[str, Tensor] | None = None) -> Any:
    """What is predicted after training, which validations have interrupted; and weights, or whether they
    are those given."""
    plain: dict[str, Any] = {
        "optimizer": {"type": "SGD", "lr": 0.5},
        "predict_dataloader": {"dataset": points(13, seed=2)},
    }
    runner = started(work_dir, dropout=0.0, **plain)
    runner.train()
    logits = [runner.predict(), runner.predict()]
    weights = runner.engine.saved.shared_state()["model"]
    runner.close()
    if truth is None:
        return logits, parts_of(weights)
    for name, value in weights.items():
        torch.testing.assert_close(local_part(value), local_part(spread_as(truth[name], value)))
    return logits, None


def test_averages_predict_and_weights_are_trained_as_in_one_process(two_ranks: Ranks, tmp_path: Path) -> None:
    truth, weights = predicted(str(tmp_path))
    for found, _ in two_ranks(predicted, str(tmp_path), weights):
        torch.testing.assert_close(found, truth)
    model = Net(dropout=0.0)
    model.load_state_dict(weights)
    unaveraged = model(points(13, seed=2).tensors, "predict")
    assert not torch.allclose(torch.stack(truth[0]), unaveraged, atol=1e-3)


SWAP = {r"^blocks\.0": "second", r"^blocks\.1": "blocks.0", r"^second": "blocks.1"}
LOADS: dict[str, dict[str, Any]] = {
    "model": {"parts": ["model"]},
    "averages": {"parts": ["model"], "weights": "ema"},
    "a file": {"file": True},
    "renamed": {"rename": SWAP, "parts": ["model", "optimizer"]},
    "some": {"rename": {r"^blocks\.0\..*": None}, "strict": False, "left_out": "blocks.0."},
    "every part": {"parts": EVERY},
}


class Held(Hook):
    """What training begins with, held against what is stored."""

    def __init__(self, truth: dict[str, Any], left_out: tuple[str, ...]) -> None:
        self._truth = truth
        self._left_out = left_out
        self.wrong: list[str] = []

    def before_train(self, runner: Any) -> None:
        state = runner.engine.saved.shared_state()
        assert all(is_spread(value) for value in state["model"].values())
        pairs = [(name, value, self._truth["model"][name]) for name, value in state["model"].items()]
        for name, held in state["optimizers"]["optimizer"]["state"].items():
            assert is_spread(held["exp_avg"])
            pairs += [(name, held[kind], value) for kind, value in self._truth["optimizer"][name].items()]
        for name, value, truth in pairs:
            same = torch.equal(local_part(value), local_part(spread_as(truth, value)))
            self.wrong += [] if same or name.startswith(self._left_out) else [name]
        runner.request("stop", agreed=True)


def swapped(name: str) -> str:
    there = {"blocks.0": "blocks.1", "blocks.1": "blocks.0"}.get(name[:8])
    return name if there is None else there + name[8:]


def loaded(work_dir: str, place: str) -> dict[str, list[str]]:
    """What is not as it is stored, for each way to load."""
    wrong = {}
    shared = StoredCheckpoint(Folder(place).child(f"checkpoints/step-{STOP:08d}")).read().shared
    for name, way in LOADS.items():
        given = {"path": f"{place}/checkpoints", **way}
        if given.pop("file", False):
            given = {"path": f"{place}/weights.safetensors"}
        truth = {"model": shared["model"], "optimizer": shared["optimizers"]["optimizer"]["state"]}
        if name == "averages":
            truth["model"] = shared["hooks"]["EMAHook"]["averages"]
        if name == "renamed":
            truth = {part: {swapped(key): one for key, one in of.items()} for part, of in truth.items()}
        held = Held(truth, given.pop("left_out", ()))
        runner = started(f"{work_dir}/{name}", held=held, load_from=given)
        runner.train()
        wrong[name] = held.wrong
        assert bool(runner.engine.optimizers["optimizer"].state) == ("optimizer" in given.get("parts", ()))
        runner.close()
    return wrong


def test_parts_are_loaded_each_to_where_it_is_held(two_ranks: Ranks, tmp_path: Path) -> None:
    started(tmp_path, stop=STOP).train()
    export_weights(tmp_path, tmp_path / "weights.safetensors")
    nothing: dict[str, list[str]] = {name: [] for name in LOADS}
    assert two_ranks(loaded, str(tmp_path / "loads"), str(tmp_path)) == [nothing, nothing]


def fetched(work_dir: str, width: int) -> tuple[int, int]:
    """How many bytes of tensors a rank fetches to resume, and how many it then holds."""
    runner = started(work_dir, width=width, resume=True)
    true, count = BlockReader.read, 0

    def counted(self: BlockReader, wanted: Any) -> None:
        nonlocal count
        count += sum(len(one.into) for one in wanted)
        true(self, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockReader, "read", counted)
        runner.train()
    held = 3 * sum(local_part(p).nbytes for p in runner.model.parameters())  # with two moments
    held += sum(local_part(p).nbytes for p in runner.model.parameters())  # and the averages
    runner.close()
    return count, held


def test_a_rank_fetches_little_more_than_what_it_holds(two_ranks: Ranks, tmp_path: Path) -> None:
    width = 1024  # of 4 MiB each
    two_ranks(ended, str(tmp_path), width=width, stop=2)
    for count, held in two_ranks(fetched, str(tmp_path), width):
        assert held < count < 1.1 * held
