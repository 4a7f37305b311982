"""A training step as one graph of the device: forward, backward and update without python in between."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from stratrun.engine.capture import Capture
from stratrun.engine.finite import Guard
from stratrun.engine.graphable import refuse_draws
from stratrun.engine.placed import Placed
from stratrun.engine.static import cloned, kind_of, tensors_of
from stratrun.engine.updates import Updates
from stratrun.errors import ConfigError
from stratrun.seed import host_rng_state
from stratrun.state import BatchInfo, TrainState

_LOG = logging.getLogger("stratrun.engine")
WARM_UP = 3
"""Steps with batches of one kind before they are captured: libraries choose their kernels meanwhile, and
optimizers make their state."""

Step = Callable[..., dict[str, Any]]


class GraphedStep:
    """Stands in for `Engine.train_step`.

    The first steps are made as ever, and are steps of the training like all others. Then the very same step
    is captured, and what comes next is a copy of each batch into the memory of the captured one, a replay,
    and what the host has to do: the learning rate, the counters, hearing of losses that are not finite.
    """

    def __init__(
        self,
        step: Step,
        *,
        placed: Placed,
        updates: Updates,
        guard: Guard | None,
        batch: BatchInfo,
        state: TrainState,
        capture: Capture,
    ) -> None:
        self._step = step
        self._placed = placed
        self._updates = updates
        self._guard = guard
        self._batch = batch
        self._state = state
        self._capture = capture
        (self._optimizer,) = updates.optimizers.values()
        self._rates = Rates(self._optimizer)
        self._seen: Counter[Hashable] = Counter()
        self._kind: Hashable = None
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._written: list[Tensor] = []
        self._outputs: dict[str, Any] = {}
        self._trained: tuple[bool, ...] = ()
        self._epoch = -1
        # What is loaded into it lies elsewhere than what was captured.
        self._optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def __call__(self, batch: Any, *, update: bool = True, divisor: int = 1) -> dict[str, Any]:
        """One step; see `Engine.train_step`."""
        if not update or divisor != 1:
            raise ConfigError(
                "compile: graphs=True captures an update for each batch, and this loop makes one of several; "
                "leave accumulate= or graphs= out"
            )
        kind = kind_of(batch), self._batch.scale
        if self._epoch != self._state.epoch:
            self._note_epoch()
        if self._kind is None and self._seen[kind] >= WARM_UP:
            self._take_down(batch, kind)
        if self._replay is None or kind != self._kind:
            return self._as_ever(batch, kind)
        if not self._placed.model.training:
            # For whoever asks; the graph goes by what was when it was captured.
            self._placed.to_training()
        torch._foreach_copy_(self._inputs, tensors_of(batch), non_blocking=True)
        self._rates.follow()
        # No operation is called for what it writes, and some go by that to know what has changed.
        increment_version(self._written)
        self._replay()
        return self._heard()

    def forget(self) -> None:
        """Capture anew, as something that was captured is no longer where it was."""
        self._kind = self._replay = None
        self._inputs, self._written, self._outputs = [], [], {}
        self._seen.clear()

    def _as_ever(self, batch: Any, kind: Hashable) -> dict[str, Any]:
        self._seen[kind] += 1
        if len(self._seen) > 2:
            raise ConfigError(
                "compile: graphs=True needs batches of one kind, and a third one came (the second may be the "
                f"last, short one of an epoch): {_difference(list(self._seen))}; pad to one length, give "
                "drop_last=True, or leave graphs= out"
            )
        if self._replay is not None and self._seen[kind] == 1:
            _LOG.info("a batch of another shape than the captured one, such as the last of an epoch, is not "
                      "replayed: its step is made as without graphs")  # fmt: skip
        # Not of the first one, in which what is compiled may draw.
        before = host_rng_state() if self._replay is None and self._seen[kind] == WARM_UP else None
        with self._rates.on_device():
            outputs = self._capture.warm_up(lambda: self._step(batch))
        if before is not None:
            refuse_draws(before, host_rng_state())
        weight = outputs.get("weight")
        if weight is not None and not (
            isinstance(weight, Tensor) and weight.device == outputs["loss"].device
        ):
            raise ConfigError(
                "compile: graphs=True: the training step returns a 'weight' that is not on the device, and "
                "would stay what it was when the step was captured; return a tensor that is made there"
            )
        return outputs

    def _take_down(self, batch: Any, kind: Hashable) -> None:
        copy = cloned(batch)
        inputs = tensors_of(copy)

        def work() -> None:
            with self._rates.on_device(), _captured(self._guard):
                self._outputs = self._step(copy)

        try:
            self._replay = self._capture.capture(work)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                "compile: graphs=True: the training step cannot be captured. It must not wait for the device "
                "(.item(), float(), printing a tensor, masks as indices), nor copy to or from it; "
                "stratrun.testing.count_syncs tells where it does. Or leave graphs= out"
            ) from error
        self._kind, self._inputs = kind, inputs
        bare, states = self._placed.bare, self._optimizer.state.values()
        of_updates = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        self._written = [*bare.parameters(), *bare.buffers(), *of_updates]
        self._rates.note()

    def _heard(self) -> dict[str, Any]:
        """What the host does of an update that the device has been given."""
        outputs: dict[str, Any] = cloned(self._outputs)
        guard = self._guard
        made = guard is None or guard.replayed(outputs["loss"])
        self._updates.replayed(made)
        if not made:
            outputs.pop("grad_norm", None)
        return outputs

    def _note_epoch(self) -> None:
        """Look for what may change between epochs: parameters frozen or thawed, parts kept in evaluation."""
        self._epoch = self._state.epoch
        bare = self._placed.bare
        if not self._placed.model.training:
            self._placed.to_training()
        now = *(p.requires_grad for p in bare.parameters()), *(part.training for part in bare.modules())
        if now != self._trained:
            self.forget()
            self._trained = now


class Rates:
    """What an optimizer is set to, in the form that a captured update needs.

    For everybody else, schedules and checkpoints among them, settings stay plain numbers: only while the
    optimizer is called a learning rate is a tensor, on the device, which follows the number.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._tensors: list[tuple[dict[str, Any], Tensor]] = []
        self._settings: list[dict[str, Any]] = []
        self._told: list[float] = []

    @contextmanager
    def on_device(self) -> Iterator[None]:
        self._find()
        self.follow()
        capturable = "capturable" in self._optimizer.defaults
        kept: list[dict[str, Any]] = [
            {k: group[k] for k in ("lr", "capturable") if k in group} for group, _ in self._tensors
        ]
        for group, tensor in self._tensors:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = tensor
            if capturable:
                group["capturable"] = True
        try:
            yield
        finally:
            for (group, _), before in zip(self._tensors, kept, strict=True):
                group.update(before)

    def follow(self) -> None:
        """Take over learning rates that have changed.

        Raises:
            ConfigError: something else has, which is in the graph as it was.
        """
        for index, (group, tensor) in enumerate(self._tensors):
            if not isinstance(group["lr"], Tensor) and group["lr"] != self._told[index]:
                self._told[index] = group["lr"]
                tensor.fill_(group["lr"])
        for group, before in zip(self._optimizer.param_groups, self._settings, strict=False):
            for name, value in before.items():
                if group.get(name) != value:
                    raise ConfigError(
                        f"compile: graphs=True: {name} of the optimizer was {value!r} when the step was "
                        f"captured and is {group.get(name)!r} now; only the learning rate may change "
                        "(cycle_momentum=False of OneCycleLR and CyclicLR)"
                    )

    def note(self) -> None:
        """What is set now is in a graph."""
        self._settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
            for group in self._optimizer.param_groups
        ]

    def _find(self) -> None:
        """A tensor for each group; groups are others once a state was loaded."""
        groups = self._optimizer.param_groups
        if [id(group) for group, _ in self._tensors] == [id(group) for group in groups]:
            return
        self._settings = []
        device = groups[0]["params"][0].device
        self._told = [float(group["lr"]) for group in groups]
        self._tensors = [
            (group, torch.full((), rate, dtype=torch.float32, device=device))
            for group, rate in zip(groups, self._told, strict=True)
        ]
        for values in self._optimizer.state.values():
            if isinstance(values.get("step"), Tensor):
                values["step"] = values["step"].to(device)


@contextmanager
def _captured(guard: Guard | None) -> Iterator[None]:
    if guard is None:
        yield
        return
    guard.captured = True
    try:
        yield
    finally:
        guard.captured = False


def _difference(kinds: list[Hashable]) -> str:
    return " and ".join(str(kind[0]) if isinstance(kind, tuple) else str(kind) for kind in kinds[-2:])
