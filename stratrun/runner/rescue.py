"""What is saved of a run that is broken off: its last whole state, or nothing."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.layout import name_of, step_of
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError, NonFiniteError
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
    """A tensor that is not copied: it must not change, or is put back in place where `version` is None."""

    tensor: Tensor
    version: int | None


@dataclass(frozen=True, slots=True)
class _Whole:
    """The state between two iterations: small parts as copies, large ones by what tells that they changed."""

    shared: Any
    own: Any
    settings: list[Any]
    """Of each parameter group, as hooks and schedules move them within an iteration too."""
    versions: list[int]
    meta: dict[str, Any]
    keeps_gradients: bool
    """Whether gradients are aside, which would have had to be brought together."""


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
        self._attempts = 0
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
            shared=self._frozen({**persistence.beside_engine(run), **run.engine.saved.shared_gradients()}),
            own=self._frozen(persistence.own_state(run, records=False)),
            settings=self._frozen(self._settings()),
            versions=list(map(_version, self._parameters)),
            meta=persistence.describe(run),
            keeps_gradients=run.engine.saved.keeps_gradients,
        )

    def save(self, error: BaseException, *, keep_last: int | None, protect: Collection[int]) -> str | None:
        """Save the last whole state, and say so in a note to the exception; or why it was not saved.

        Never raises: what went wrong first is what the user has to see.

        Returns:
            The URL of the checkpoint, if there is one.
        """
        self._attempts += 1
        whole = self._whole
        if whole is None or whole.meta["iter"] == self._started_at:
            self._leave_word(self._here("there is nothing to save yet"))
            return None
        try:
            url = self._save(error, whole, keep_last, protect)
        except _Inexact as reason:
            self._tell(error, f"nothing was saved: {self._leave_word(str(reason))}; {self._newest()}")
        except BaseException as second:
            what = f"{type(second).__name__}: {second}"
            self._leave_word(self._here(f"saving failed: {what}"))
            self._tell(error, f"then saving failed too: {what}; {self._newest()}")
        else:
            self._run.last_checkpoint = url
            self._tell(error, f"saved as of iteration {whole.meta['iter']}; resume=True goes on from {url}")
            return url
        return None

    def _save(
        self, error: BaseException, whole: _Whole, keep_last: int | None, protect: Collection[int]
    ) -> str:
        run, iteration = self._run, int(whole.meta["iter"])
        try:
            if isinstance(error, CheckpointError):
                raise _Inexact("saving is what failed")
            if isinstance(error, NonFiniteError) and error.counted:
                raise _Inexact("the batch that is to blame was counted before that was known")
            self._refuse_changes(whole)
            parts = tuple(_thawed(one) for one in (whole.shared, whole.own, whole.settings))
        except _Inexact as reason:
            raise _Inexact(self._here(str(reason))) from reason
        # The exchanges of a save are not to be made by two threads.
        run.checkpointer.wait()
        shared, own = self._put_back(*parts)
        self._come_together(iteration)
        run.call_hooks("before_save_checkpoint", checkpoint=shared)
        keeping: dict[str, Any] = {"keep_last": keep_last, "protect": protect}
        return run.checkpointer.save(iteration, shared, own, meta=whole.meta, **keeping)

    def _come_together(self, iteration: int) -> None:
        """Go on only with all ranks, which all have come to the same iteration."""
        board, rank, word = self._ranks.board, self._ranks.rank, self._word
        # By messages: the ranks may have been broken off at different exchanges of the run. The second
        # tells whether all have seen all come: word of one that gave up waiting may have been seen.
        told = board.hear(f"{word}/here", lambda: str(iteration), PATIENCE, unless=word)
        if told is None or board.hear(f"{word}/go", str, PATIENCE, unless=word) is None:
            raise _Inexact(f"not every rank came to save within {PATIENCE:g} s of rank {rank}")
        if len(set(told)) > 1:
            raise _Inexact(f"the ranks, by number, were broken off after iterations {', '.join(told)}")

    @property
    def _word(self) -> str:
        """Where the first rank that will not save leaves word, for the others not to wait for it."""
        return f"rescue/{self._attempts}"

    def _leave_word(self, text: str) -> str:
        """Say why this rank will not save. Returns what the first that will not has said."""
        return self._ranks.board.leave_word(self._word, text)

    def _here(self, text: str) -> str:
        return text if self._ranks.world_size == 1 else f"on rank {self._ranks.rank} {text}"

    def _put_back(self, kept: Any, own: Any, settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shared and own state as they were, in place too where they lie in the model or an optimizer."""
        run = self._run
        self._buffers.put_back()
        for group, setting in zip(self._groups(), settings, strict=True):
            group.update(setting)
        shared = {**persistence.shared_state(run), **kept}
        return shared, {**persistence.own_state(run), **own}

    def _refuse_changes(self, whole: _Whole) -> None:
        run, module = self._run, self._run.engine.state_module
        module.state_dict()  # gives back what a forward pass that broke off has gathered
        after = f"after iteration {whole.meta['iter']}"
        if (run.state.iter, run.state.epoch) != (whole.meta["iter"], whole.meta["epoch"]):
            what = "an epoch" if run.state.iter == whole.meta["iter"] else f"iteration {run.state.iter}"
            raise _Inexact(f"{what} has ended {after}, and not all hooks have done their part for it")
        if whole.keeps_gradients:
            raise _Inexact(f"gradients that wait for an update {after} are apart on each rank")
        if self._updated or list(map(_version, self._parameters)) != whole.versions:
            raise _Inexact(f"the parameters have begun to change {after}")
        same = _are_same(run.engine.optimizers.values(), self._optimizers)
        if not (
            same and _are_same(module.parameters(), self._parameters) and self._buffers.are_those_of(module)
        ):
            raise _Inexact(f"parameters, buffers or optimizers were exchanged for others {after}")

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

    def _frozen(self, tree: Any) -> Any:
        """A copy of plain values; tensors are only held, with what tells whether they have changed."""

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return deepcopy(value)
            return _Held(value, None if value in self._buffers else _version(value))

        return _mapped(tree, leaf)

    def _newest(self) -> str:
        """Which checkpoint there is, when the save under way has ended."""
        folder, begun, ended = self._run.checkpointer.folder, self._run.last_checkpoint, ""
        try:
            self._run.checkpointer.wait()
            begun = None
        except Exception as error:
            begun, ended = None, f"; the save under way has failed: {error}"
        except BaseException:  # one more Ctrl-C: it goes on
            pass
        try:
            steps = committed_steps(folder)
        except Exception as error:
            return f"which checkpoint is the newest cannot be told: {error}{ended}"
        text = "there is no checkpoint yet"
        if steps:
            text = f"the newest checkpoint is {folder.child(name_of(steps[-1])).url}"
        # One that an earlier run of this process wrote, or that has failed, is not under way.
        step = None if begun is None else step_of(begun.rpartition("/")[2])
        if step is not None and step > (steps[-1] if steps else -1):
            text += f", and {begun} is being written"
        return f"{text}{ended}"

    def _tell(self, error: BaseException, text: str) -> None:
        error.add_note(f"stratrun: {text}")
        if self._ranks.is_main:
            _LOG.warning("%s", text)


class _Buffers:
    """Copies of a model's buffers, such as running statistics, which each forward pass moves."""

    def __init__(self) -> None:
        self._live: list[Tensor] = []
        self._ids: set[int] = set()
        self._copies: list[Tensor | None] = []
        self._versions: list[int] = []

    def look_at(self, module: nn.Module) -> None:
        self._live = list(module.buffers())
        self._ids = {id(buffer) for buffer in self._live}
        self._copies, self._versions = [None] * len(self._live), [-1] * len(self._live)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._ids

    def are_those_of(self, module: nn.Module) -> bool:
        return _are_same(module.buffers(), self._live)

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


def _version(tensor: Tensor) -> int:
    """Grows when a tensor changes, be it as a whole or by the part of it that this rank holds."""
    part = getattr(tensor, "_local_tensor", None)
    return tensor._version if part is None else tensor._version + part._version


def _are_same(some: Iterable[object], others: Iterable[object]) -> bool:
    return [id(one) for one in some] == [id(one) for one in others]


def _thawed(tree: Any) -> Any:
    """What was frozen, of which tensors are only held.

    Raises:
        _Inexact: a tensor of it has changed since.
    """

    def leaf(value: Any) -> Any:
        if not isinstance(value, _Held):
            return value
        if value.version is not None and _version(value.tensor) != value.version:
            raise _Inexact("the iteration that was broken off has changed tensors that are not copied")
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
