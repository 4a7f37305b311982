"""Lightning's ``.ckpt`` files: read without running what they name, and where each part of them goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from stratrun.checkpoint.foreign import Placeholder, read_with_placeholders
from stratrun.errors import CheckpointError, IncompatibleError, nearest
from stratrun.spread import is_spread
from stratrun_ext.migrate.lightning.link import Link
from stratrun_ext.migrate.parts import is_weight, named

_TAKEN = ("state_dict", "optimizer_states", "lr_schedulers", "hyper_parameters", "epoch", "global_step")
_KNOWN = {
    "loops": "counts of epochs and batches are taken, where an epoch was whole; the rest is the loops' own",
    "callbacks": "states of callbacks: hooks of ours have their own",
    "pytorch-lightning_version": "",
    "hparams_name": "",
    "hyper_parameters": "",
    "datamodule_hparams_name": "",
    "MixedPrecision": "the scale of 16-mixed is found anew",
}


@dataclass(frozen=True)
class LightningCheckpoint:
    """What a ``.ckpt`` holds. `report` says what becomes of it."""

    path: str
    weights: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    hparams: dict[str, Any]
    epochs: int | None
    """Whole epochs that were done; None where it was saved within one."""
    batches: int
    step: int
    others: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    """Of each name that is no tensor in memory, what it is."""

    @property
    def report(self) -> list[str]:
        """What is taken and what is not, a line on each."""
        lines = [f"weights: {len(self.weights)} tensors"]
        if self.optimizers:
            lines.append(f"optimizer: state of {len(self.optimizers[0]['state'])} parameters")
        if self.schedulers:
            lines.append(f"schedulers: {len(self.schedulers)}")
        counted = "left out, as it was saved within an epoch: counting begins at 0"
        if self.epochs is not None:
            counted = f"{self.epochs} epochs, {self.batches} batches, {self.step} updates"
        lines.append(f"counts: {counted}")
        lines += [f"not taken: state_dict[{name!r}], {what}" for name, what in self.left_out.items()]
        lines += [
            f"not restored: hyper_parameters[{name!r}], {value!r}"
            for name, value in self.hparams.items()
            if isinstance(value, Placeholder)
        ]
        lines += [
            f"left out: {name}{f', {_KNOWN[name]}' if _KNOWN.get(name) else ''}" for name in self.others
        ]
        return lines

    def load_weights(self, module: nn.Module) -> None:
        """Put the weights into a model.

        Raises:
            CheckpointError: names or shapes are not those of the model.
        """
        own = module.state_dict()
        foreign, lacking = (
            [n for n in self.weights if n not in own],
            [n for n in own if n not in self.weights],
        )
        if foreign or lacking:
            one = (foreign or lacking)[0]
            where = "the model has no such weight" if foreign else "the file has none"
            raise CheckpointError(
                f"{self.path} is of another model: {one!r}: {where} ({len(foreign)} more than the model, "
                f"{len(lacking)} less); {nearest(one, own if foreign else self.weights)}"
            )
        try:
            module.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"{self.path} does not fit {type(module).__name__}: {error}") from error

    def load_optimizer(self, link: Link) -> None:
        """Put the states into the optimizer and the schedulers that the class has just made.

        Raises:
            IncompatibleError: the parameters are spread over ranks by now.
            CheckpointError: they are others than those of the file.
        """
        if not self.optimizers or link.optimizer is None:
            return
        if any(is_spread(p) for group in link.optimizer.param_groups for p in group["params"]):
            raise IncompatibleError(
                f"{self.path} has the state of an optimizer in one piece, and this strategy spreads it over "
                "ranks; go on for an epoch under strategy='ddp', and load the checkpoint of that with resume="
            )
        try:
            link.optimizer.load_state_dict(self.optimizers[0])
        except ValueError as error:
            raise CheckpointError(f"{self.path}: the optimizer is another than was saved: {error}") from error
        if len(self.schedulers) != len(link.schedulers):
            raise CheckpointError(
                f"{self.path} has {len(self.schedulers)} schedulers, configure_optimizers returned "
                f"{len(link.schedulers)}; return the same ones"
            )
        for one, state in zip(link.schedulers, self.schedulers, strict=True):
            one.scheduler.load_state_dict(state)

    def ended(self, link: Link) -> int:
        """How many epochs were done with: the last may lack what follows its validation."""
        epochs = self.epochs or 0
        moved = [
            one.scheduler.last_epoch >= epochs // one.frequency
            for one in link.schedulers
            if one.interval == "epoch"
        ]
        return epochs if all(moved) else epochs - 1


def read(path: str | os.PathLike[str]) -> LightningCheckpoint:
    """Read a file of Lightning; objects in it that only their code could restore are left out.

    Raises:
        CheckpointError: it is no file of Lightning, or holds no weights.
    """
    where, payload = os.fspath(path), read_with_placeholders(path)
    if not isinstance(payload, Mapping) or "state_dict" not in payload:
        has = ", ".join(map(str, payload)) if isinstance(payload, Mapping) else type(payload).__name__
        raise CheckpointError(
            f"{where} is no checkpoint of Lightning: it has no 'state_dict', but {has[:200]}; "
            "give weights alone as load_from="
        )
    state = _mapping(payload["state_dict"])
    weights = {name: value for name, value in state.items() if is_weight(name, value)}
    if not weights:
        raise CheckpointError(
            f"{where} has no weights in its 'state_dict', which is {named(payload['state_dict'])}"
        )
    loop = _mapping(_mapping(payload.get("loops")).get("fit_loop"))
    progress = _mapping(loop.get("epoch_loop.batch_progress"))
    whole = bool(progress.get("is_last_batch")) and isinstance(payload.get("epoch"), int)
    return LightningCheckpoint(
        where,
        weights,
        _mappings(payload.get("optimizer_states")),
        _mappings(payload.get("lr_schedulers")),
        dict(_mapping(payload.get("hyper_parameters"))),
        payload["epoch"] + 1 if whole else None,
        _count(_mapping(progress.get("total")).get("completed")),
        _count(payload.get("global_step")),
        tuple(name for name in payload if name not in _TAKEN and _KNOWN.get(name, "-")),
        {str(name): named(value) for name, value in state.items() if name not in weights},
    )


# Files are written by others, and by other versions: what has another form is taken for what is not there.


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Any]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
