"""What is saved of a run that is broken off: its last whole state, or nothing."""

import logging
from collections import deque
from collections.abc import Callable, Collection
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.layout import name_of
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError
from stratrun.runner import persistence
from stratrun.runner.persistence import Savable

_LOG = logging.getLogger("stratrun.runner")
# How long the others have to come. A rank that failed alone goes on after that, to say what failed.
PATIENCE = 10.0


class Run(Savable, Protocol):
    """A run, as far as saving it goes."""

    last_checkpoint: str | None

    @property
    def checkpointer(self) -> Checkpointer: ...
    def call_hooks(self, point: str, /, **details: Any) -> None: ...


class _Inexact(Exception):
    """Why the state at hand is not one that a resumed run could go on from exactly."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor that is not copied, as it must not change."""

    tensor: Tensor
    version: int


@dataclass(frozen=True, slots=True)
class _Whole:
    """The state between two iterations: small parts as copies, large ones by what tells that they changed."""

    shared: Any
    own: Any
    settings: list[Any]
    """Of each parameter group, as hooks and schedules move them within an iteration too."""
    versions: list[int]
    meta: dict[str, Any]


class Rescue:
    """Keeps track of the last whole state of a run, and saves it when what came after is broken off.

    An iteration that an exception ends halfway has drawn random numbers, moved running statistics,
    and called some hooks and not others. All of that is put back to where `note` was called last. Parameters
    are not copied: they are as they were then unless an update has begun, and then nothing
    is saved.
    """

    def __init__(self, run: Run, ranks: Collectives) -> None:
        self._run = run
        self._ranks = ranks
        self._whole: _Whole | None = None
        self._started_at = -1
        self._updated = False
        self._optimizers: list[Optimizer] = []
        self._parameters: list[Tensor] = []
        self._buffers = _Buffers()

    def note(self) -> None:
        """Say that the state is whole: all hooks that change it are done with what was counted."""
        run = self._run
        self._watch(run)
        self._updated = False
        self._buffers.keep()
        self._whole = _Whole(
            shared=_frozen(persistence.beside_engine(run)),
            own=_frozen(persistence.own_state(run, records=False)),
            settings=_frozen(self._settings()),
            versions=[parameter._version for parameter in self._parameters],
            meta=persistence.describe(run),
        )

    def save(self, error: BaseException, *, keep_last: int | None, protect: Collection[int]) -> str | None:
        """Save the last whole state, and say so in a note to the exception; or why it was not saved.

        Never raises: what went wrong first is what the user has to see.

        Returns:
            The URL of the checkpoint, if there is one.
        """
        whole = self._whole
        if whole is None or whole.meta["iter"] == self._started_at:
            return None
        try:
            url = self._save(error, whole, keep_last, protect)
        except _Inexact as reason:
            self._tell(error, f"nothing was saved: {reason}; {self._newest()}")
        except BaseException as second:
            self._tell(error, f"then saving failed too: {type(second).__name__}: {second}; {self._newest()}")
        else:
            self._run.last_checkpoint = url
            self._tell(error, f"saved as of iteration {whole.meta['iter']}; resume=True goes on from {url}")
            return url
        return None

    def _save(
        self, error: BaseException, whole: _Whole, keep_last: int | None, protect: Collection[int]
    ) -> str:
        run, iteration = self._run, int(whole.meta["iter"])
        reason: str | None = None
        shared: dict[str, Any] = {}
        own: dict[str, Any] = {}
        try:
            if isinstance(error, CheckpointError):
                raise _Inexact("saving is what failed")
            shared, own = self._put_back(whole)
        except _Inexact as inexact:
            reason = str(inexact)
        self._come_together(iteration, reason)
        run.call_hooks("before_save_checkpoint", checkpoint=shared)
        url = run.checkpointer.save(iteration, shared, own, meta=whole.meta)
        run.checkpointer.apply_retention(keep_last, protect)
        return url

    def _come_together(self, iteration: int, reason: str | None) -> None:
        """Go on only with all ranks, and only if the state is whole on each."""
        ranks = self._ranks
        # The second call tells whether all have seen all come: word of one that gave up waiting stays.
        for label in (f"rescue/{iteration}", f"rescue/{iteration}/go"):
            if not ranks.all_here(label, PATIENCE):
                raise _Inexact(
                    reason or f"not every rank came to save within {PATIENCE:g} s of rank {ranks.rank}"
                )
        for rank, found in enumerate(ranks.gather(reason)):
            if found is not None:
                raise _Inexact(found if ranks.world_size == 1 else f"on rank {rank} {found}")

    def _put_back(self, whole: _Whole) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shared and own state as they were, in place too where they lie in the model or an optimizer."""
        run = self._run
        self._refuse_changes(whole)
        kept, own, settings = _thawed(whole.shared), _thawed(whole.own), _thawed(whole.settings)
        self._buffers.put_back()
        for group, setting in zip(self._groups(), settings, strict=True):
            group.update(setting)
        shared = {**persistence.shared_state(run), **kept}
        return shared, {**persistence.own_state(run), **own}

    def _refuse_changes(self, whole: _Whole) -> None:
        after = f"after iteration {whole.meta['iter']}"
        module, optimizers = self._run.engine.state_module, self._run.engine.optimizers
        if self._updated or [parameter._version for parameter in self._parameters] != whole.versions:
            raise _Inexact(f"the parameters have begun to change {after}, which was not finished with")
        if list(optimizers.values()) != self._optimizers or not self._buffers.are_those_of(module):
            raise _Inexact(f"tensors of the model, or its optimizers, were exchanged {after}")
        if self._run.state.epoch != whole.meta["epoch"]:
            raise _Inexact(f"the end of the epoch {after} was not finished with")
        window = self._run.engine.own_state()["window"]
        if (window and window["batches"]) != (whole.own["window"] and whole.own["window"]["batches"]):
            raise _Inexact(f"an accumulation window has gone on {after}")

    def _watch(self, run: Run) -> None:
        """Be told of each update before it begins, whatever calls for it."""
        optimizers = list(run.engine.optimizers.values())
        if self._started_at < 0:
            self._started_at = run.state.iter
        for one in optimizers:
            if not any(one is known for known in self._optimizers):
                one.register_step_pre_hook(self._on_update)
        if (
            self._optimizers != optimizers
            or self._whole is None
            or self._whole.meta["epoch"] != run.state.epoch
        ):
            # Walking over the modules takes long, and few models exchange tensors within an epoch.
            self._optimizers = optimizers
            self._parameters = list(run.engine.state_module.parameters())
            self._buffers.look_at(run.engine.state_module)

    def _on_update(self, *_: Any) -> None:
        self._updated = True

    def _groups(self) -> list[dict[str, Any]]:
        return [group for one in self._optimizers for group in one.param_groups]

    def _settings(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in group.items() if k != "params"} for group in self._groups()]

    def _newest(self) -> str:
        try:
            steps = committed_steps(self._run.checkpointer.folder)
        except Exception as error:
            return f"which checkpoint is the newest cannot be told: {error}"
        if not steps:
            return "there is no checkpoint yet"
        return f"the newest checkpoint is {self._run.checkpointer.folder.child(name_of(steps[-1]))}"

    def _tell(self, error: BaseException, text: str) -> None:
        error.add_note(f"stratrun: {text}")
        if self._ranks.is_main:
            _LOG.warning("%s", text)


class _Buffers:
    """Copies of a model's buffers, such as running statistics, which each forward pass moves."""

    def __init__(self) -> None:
        self._live: list[Tensor] = []
        self._copies: list[Tensor | None] = []
        self._versions: list[int] = []

    def look_at(self, module: nn.Module) -> None:
        self._live = list(module.buffers())
        self._copies, self._versions = [None] * len(self._live), [-1] * len(self._live)

    def are_those_of(self, module: nn.Module) -> bool:
        return [id(one) for one in module.buffers()] == [id(one) for one in self._live]

    def keep(self) -> None:
        """Copy those that have changed since the last time."""
        for i, buffer in enumerate(self._live):
            if buffer._version == self._versions[i]:
                continue
            self._versions[i] = buffer._version
            copied = self._copies[i]
            if copied is None:
                self._copies[i] = buffer.detach().clone()
            else:
                copied.copy_(buffer.detach())

    @torch.no_grad()
    def put_back(self) -> None:
        for buffer, copied, version in zip(self._live, self._copies, self._versions, strict=True):
            if copied is not None and buffer._version != version:
                buffer.copy_(copied)


def _frozen(tree: Any) -> Any:
    """A copy of plain values; tensors are only held, with what tells whether they have changed."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _Held(value, value._version)
        return deepcopy(value)

    return _mapped(tree, leaf)


def _thawed(tree: Any) -> Any:
    """What was frozen.

    Raises:
        _Inexact: a tensor of it has changed since.
    """

    def leaf(value: Any) -> Any:
        if not isinstance(value, _Held):
            return value
        if value.tensor._version != value.version:
            raise _Inexact("a tensor of the state was changed by the iteration that was broken off")
        return value.tensor

    return _mapped(tree, leaf)


def _mapped(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same tree with other leaves."""
    if tree is None or isinstance(tree, str | int | float | bool):
        return tree
    if isinstance(tree, dict):
        made = copy(tree)
        for key, value in tree.items():
            made[key] = _mapped(value, leaf)
        return made
    if isinstance(tree, tuple):
        values = [_mapped(value, leaf) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return [_mapped(value, leaf) for value in tree]
    if isinstance(tree, deque):
        return deque((_mapped(value, leaf) for value in tree), tree.maxlen)
    return leaf(tree)
