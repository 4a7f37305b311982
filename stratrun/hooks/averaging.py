"""Averages of weights beside the weights: how they are kept, shown to evaluations, and saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stratrun.errors import CheckpointError
from stratrun.hooks.base import Hook
from stratrun.spread import local_part, spread_as

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratrun.context import RunContext


class AveragingHook(Hook):
    """Keeps averages of the weights, and evaluates with them.

    Validation, test and prediction see the averages. Training goes on with the plain weights, and those are
    what a checkpoint holds as the model, whenever it is made; the averages lie beside them. Averaged is each
    floating point parameter, frozen or not, in float32 or more precisely, and each process averages what it
    holds of it.

    A subclass says when weights are averaged (`_mark`) and by how much an average moves (`_weight`).
    """

    # Behind hooks that change weights themselves, and ahead of saving.
    priority = 80

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._live: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] = {}
        self._plain: dict[str, Tensor] = {}
        self._updates = 0
        self._step = -1

    def start(self, model: nn.Module) -> None:
        """Begin with averages that are the weights of the model."""
        self._bind(model)
        if not self._averages:
            self._averages = {name: _like(p).copy_(p) for name, p in self._live.items()}

    def before_train(self, runner: RunContext) -> None:
        self._restore()
        self._bind(runner.model)
        # Also where another hook had saved before the last update was averaged.
        self._follow(runner)

    def before_train_iter(self) -> None:
        # An evaluation that failed, and whose error someone caught, has not ended.
        self._restore()

    def after_train_iter(self, runner: RunContext) -> None:
        self._follow(runner)

    def after_train_epoch(self, runner: RunContext) -> None:
        # The end of the data may have closed a window of accumulation.
        self._follow(runner)

    def before_val_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_val_epoch(self) -> None:
        self._restore()

    def before_test_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_test_epoch(self) -> None:
        self._restore()

    def before_predict_epoch(self, runner: RunContext) -> None:
        self._show(runner)

    def after_predict_epoch(self) -> None:
        self._restore()

    def on_exception(self) -> None:
        self._restore()

    def on_break_off(self) -> None:
        self._restore()

    def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the plain weights in place of averages that the model shows at the moment."""
        if not self._plain or self._model is None:
            return
        saved = checkpoint["model"]
        # A loss with weights of its own is saved beside the model.
        prefix = "" if saved.keys() <= self._model.state_dict().keys() else "model."
        for name, tensor in _names(self._model).items():
            if tensor in self._plain:
                saved[f"{prefix}{name}"] = self._plain[tensor]

    def state_dict(self) -> dict[str, Any]:
        """`averages` are whole weights, by the names of the model's own state, buffers and all."""
        averages: dict[str, Any] = dict(self._loaded)
        if self._averages and self._model is not None:
            names, own = _names(self._model), self._model.state_dict()
            plain = {name: self._plain.get(name, value) for name, value in own.items()}
            averages = {name: self._averages.get(names[name], plain[name]) for name in names}
        return {"averages": averages, "updates": self._updates, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averages, self._plain = {}, {}
        self._loaded = state["averages"]
        self._updates, self._step = state["updates"], state["step"]

    def _mark(self, runner: RunContext) -> int | None:
        """The count of finished work after which weights are averaged, if that has come; else None."""
        raise NotImplementedError

    def _weight(self) -> float:
        """How much of an average the weights make up, once there have been `_updates`."""
        raise NotImplementedError

    def _moving(self) -> None:
        """What is to be done before the averages move."""

    def _averaged(self, model: nn.Module) -> dict[str, Tensor]:
        """What averages are kept of."""
        return {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}

    def _shown(self, runner: RunContext) -> None:
        """What is to be done once the model has its averages, before it is evaluated."""

    def _bind(self, model: nn.Module) -> None:
        """Take note of the model's parameters, and give loaded averages the place of theirs."""
        self._model = model
        self._live = self._averaged(model)
        if not self._loaded:
            return
        for name, tensor in self._live.items():
            loaded = self._loaded.get(name)
            if loaded is None or loaded.shape != tensor.shape:
                what = "no average" if loaded is None else f"one of shape {tuple(loaded.shape)}"
                raise CheckpointError(
                    f"{type(self).__name__}: {name!r} has the shape {tuple(tensor.shape)}, and the "
                    f"checkpoint {what} of it; use the same model, or only the weights, with load_from="
                )
            self._averages[name] = _like(tensor).copy_(spread_as(loaded, tensor))
        self._loaded = {}

    @torch.no_grad()
    def _follow(self, runner: RunContext) -> None:
        """Average once, if that has become due since the last call."""
        mark = self._mark(runner)
        if mark is None or mark == self._step:
            return
        self._step = mark
        if self._loaded:  # by a rollback, in the middle of training
            self._bind(runner.model)
        if not self._averages:
            self.start(runner.model)
            return
        self._updates += 1
        self._moving()
        averages = held(self._averages[name] for name in self._live)
        weights = [p.to(a.dtype) for p, a in zip(held(self._live.values()), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, self._weight())

    @torch.no_grad()
    def _show(self, runner: RunContext) -> None:
        """Have the model hold the averages, and keep what it held."""
        if self._plain:
            return
        self._bind(runner.model)
        if self._averages:
            self._plain = {name: p.detach().clone() for name, p in self._live.items()}
            self._fill(self._averages)
            self._shown(runner)

    def _restore(self) -> None:
        """Give the model back, to the bit, what it held before an evaluation."""
        if self._plain:
            self._fill(self._plain)
            self._plain = {}

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(held(self._live.values()), held(values[name] for name in self._live))


def held(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of each: enough for arithmetic that takes every element by itself."""
    return [local_part(tensor) for tensor in tensors]


def _like(tensor: Tensor) -> Tensor:
    """Room for the average of a tensor, where that lies."""
    return torch.empty_like(
        tensor, dtype=torch.promote_types(tensor.dtype, torch.float32), requires_grad=False
    )


def _names(model: nn.Module) -> dict[str, str]:
    """For each name in the model's state, the one that its tensor goes by among the parameters.

    Tied weights have several names in the state, and one as parameters.
    """
    state = model.state_dict(keep_vars=True)
    first: dict[Any, str] = {p: name for name, p in model.named_parameters()}
    return {name: first.get(t, name) for name, t in state.items() if isinstance(t, torch.Tensor)}
