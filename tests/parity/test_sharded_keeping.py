"""What hooks and optimizers keep beside weights that are spread over ranks: resumed, or refused by name."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratrun import Runner
from stratrun.hooks import Hook
from stratrun.spread import is_spread
from tests.parity.test_other_ranks import Stop
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks


class Best(Hook):
    """Keeps whole weights by the names of parameters, as one that goes back to the best of them does."""

    def __init__(self) -> None:
        self.best: dict[str, Tensor] = {}
        self.found: dict[str, Tensor] | None = None

    def after_train_iter(self, runner: Any) -> None:
        if runner.step == 2:
            state = runner.engine.saved.shared_state()["model"]
            self.best = {name: whole(value).clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = self.found = dict(state)


class ByRows(torch.optim.Optimizer):
    """Scales an update by running means: of each row, and of all numbers of a weight."""

    def __init__(self, params: Any, lr: float = 0.05) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state, square = self.state[p], p.grad.square()
                for name, mean in (("rows", square.mean(-1, keepdim=True)), ("all", square.mean())):
                    state[name] = mean if name not in state else state[name] * 0.9 + mean * 0.1
                p.sub_(group["lr"] * p.grad / (state["rows"] + state["all"] + 1e-3).sqrt())


def whole(value: Any) -> Tensor:
    tensor: Tensor = value.full_tensor() if is_spread(value) else value
    return tensor


def trained(work_dir: str, strategy: str, stop: int | None, hook: Any = None, **options: Any) -> Any:
    """The whole weights after training, as lists; and the hook, as it was after that."""
    hook = hook or Best()
    runner = Runner(
        lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES)),
        loss="cross_entropy",
        train_dataloader={"dataset": points(32), "global_batch_size": 8},
        train_cfg={"by_epoch": False, "max_iters": 6},
        custom_hooks=[hook, *([] if stop is None else [Stop(stop)])],
        loggers=(),
        randomness={"seed": 1},
        work_dir=work_dir,
        strategy=strategy,
        **{"optimizer": {"type": ByRows}, **options},
    )
    try:
        runner.train()
        weights = runner.engine.saved.shared_state()["model"]
        return {name: whole(value) for name, value in weights.items()}, hook
    finally:
        runner.close()


def gone_on(work_dir: str, strategies: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for strategy in strategies:
        truth, kept = trained(f"{work_dir}/{strategy}/whole", strategy, None)
        trained(f"{work_dir}/{strategy}/cut", strategy, 3)
        weights, back = trained(f"{work_dir}/{strategy}/cut", strategy, None, resume=True)
        types = {type(value).__name__ for value in back.found.values()}
        equal = all(torch.equal(back.found[name], value) for name, value in kept.best.items())
        torch.testing.assert_close(weights, truth)
        found.append({"types": types, "equal": equal, "names": list(back.found) == list(kept.best)})
    return found


def test_whole_tensors_of_hooks_and_means_of_optimizers_come_back(two_ranks: Ranks, tmp_path: Path) -> None:
    as_they_were = {"types": {"Tensor"}, "equal": True, "names": True}
    for found in two_ranks(gone_on, str(tmp_path), ("fsdp", "ddp")):
        assert found == [as_they_were] * 2


def carried_over(work_dir: str) -> Any:
    return trained(work_dir, "fsdp", None, resume=True)[0]


def test_means_that_one_process_has_saved_are_gone_on_with_on_two(two_ranks: Ranks, tmp_path: Path) -> None:
    truth, _ = trained(str(tmp_path / "whole"), "single", None)
    trained(str(tmp_path / "cut"), "single", 3)
    for weights in two_ranks(carried_over, str(tmp_path / "cut")):
        torch.testing.assert_close(weights, truth)


def named() -> list[tuple[str, dict[str, Any]]]:
    """Those of torch that need no closure, and take gradients that are not sparse."""
    every = [
        name
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    ]
    left = sorted(set(every) - {"Optimizer", "LBFGS", "SparseAdam", "Muon"})
    return [(name, {}) for name in left] + [("SGD", {"fused": True}), ("Adagrad", {"fused": True})]


def refused(work_dir: str) -> dict[str, str]:
    """What is noted where an optimizer fails; the others come to what they come to in one process."""
    notes = {}
    for name, way in named():
        given = {"type": name, "lr": 0.01, **way}
        try:
            trained(
                f"{work_dir}/{name}{len(way)}",
                "fsdp",
                None,
                optimizer=given,
                default_hooks={"checkpoint": None},
            )
        except Exception as error:
            notes[f"{name}{' fused' if way else ''}"] = "".join(getattr(error, "__notes__", []))
    return notes


def test_optimizers_that_cannot_update_parts_are_these_and_say_so(two_ranks: Ranks, tmp_path: Path) -> None:
    for notes in two_ranks(refused, str(tmp_path)):
        assert sorted(notes) == ["Adafactor", "Adagrad fused", "Rprop", "SGD fused"]
        for name, note in notes.items():
            assert f"strategy='fsdp' spreads parameters over ranks; {name.split()[0]} updates them" in note
            assert "take another optimizer, or strategy='ddp'" in note
