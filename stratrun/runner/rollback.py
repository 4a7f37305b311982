"""Back to weights of before, where an update is not finite; the data goes on."""

from __future__ import annotations

from copy import copy, deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from stratrun.engine import NonFinite
from stratrun.errors import CheckpointNotFoundError, NonFiniteError
from stratrun.hooks.base import PRIORITIES, Hook
from stratrun.runner import persistence

if TYPE_CHECKING:
    from stratrun.runner.context import RunnerContext


class RollbackHook(Hook):
    """Puts model, optimizers, schedules and hooks back when the guard asks for it.

    Counts of epochs, iterations and samples go on with the data, so that the batch that was not finite does
    not come again. That of updates goes back, as those are undone. A copy in memory is made before the first
    iteration, of `every` further updates, and of whatever is saved, so that a run that is gone on with has
    the same to go back to.
    """

    # Before an iteration begins, when all else that changes weights is done.
    priority: ClassVar[int] = PRIORITIES["LOWEST"]
    goes_on: ClassVar[None] = None

    def __init__(self, settings: NonFinite) -> None:
        self._settings = settings
        self._count = 0
        self._due = True
        self._snapshot: dict[str, Any] = {}

    def before_train(self, runner: RunnerContext) -> None:
        assert runner.engine.guard is not None
        runner.engine.guard.roll_back = partial(self._go_back, runner)
        self._due = True

    def before_train_iter(self, runner: RunnerContext) -> None:
        if self._settings.to == "memory" and (
            self._due or runner.step - self._snapshot["step"] >= self._settings.every
        ):
            self._due = False
            self._take(runner)

    def before_save_checkpoint(self) -> None:
        self._due = True

    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["rollbacks"]

    def _take(self, runner: RunnerContext) -> None:
        if runner.engine.guard is not None:
            runner.engine.guard.settle()
        state = {**runner.engine.saved.learnt_state(), **persistence.beside_engine(runner)}
        self._snapshot = {"state": _copied(state), "step": runner.step, "iter": runner.iter}

    def _go_back(self, runner: RunnerContext, why: str) -> str:
        """Put the run back, on all ranks. Returns to where, for the user.

        Raises:
            NonFiniteError: it was put back too often, or there is nothing to go back to.
        """
        limit = self._settings.limit
        if self._count >= limit:
            raise NonFiniteError(
                f"{why}; the run went back to earlier weights {self._count} times already, the limit. "
                "Look at these samples, or lower the learning rate, or give a higher limit"
            )
        if self._settings.to == "memory":
            state, where = _copied(self._snapshot["state"]), "kept in memory"
        else:
            state, where = self._newest(runner, why), "of the newest checkpoint"
        self._count += 1
        _put_back(runner, state)
        counters = state["counters"]
        return (
            f"back to the weights after iteration {counters['iter']}, {where}, and on with the data "
            f"(number {self._count} of at most {limit})"
        )

    def _newest(self, runner: RunnerContext, why: str) -> dict[str, Any]:
        runner.checkpointer.wait()
        try:
            found = runner.checkpointer.load("latest", runner.engine.saved.rooms.room)
        except CheckpointNotFoundError as error:
            raise NonFiniteError(
                f"{why}; there is no checkpoint yet to go back to; save earlier "
                "(default_hooks=dict(checkpoint=dict(interval=100, by_epoch=False))), or keep copies with "
                "non_finite=dict(policy='rollback', to='memory')"
            ) from error
        state: dict[str, Any] = found.shared
        return state


def _put_back(runner: RunnerContext, state: dict[str, Any]) -> None:
    runner.engine.saved.load_shared_state(state)
    runner.state.step = state["counters"]["step"]
    for schedule, saved in zip(runner.schedules, state["schedules"], strict=True):
        schedule.load_state_dict(saved)
    for name, hook in persistence.named_hooks(runner.hooks).items():
        if hook.goes_on is None or name not in state["hooks"]:
            continue
        now = hook.state_dict() if hook.goes_on else {}
        hook.load_state_dict({**state["hooks"][name], **{key: now[key] for key in hook.goes_on}})


def _copied(tree: Any) -> Any:
    """The same tree with tensors, and whatever else is no container, of its own."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        made = copy(tree)
        for key, value in tree.items():
            made[key] = _copied(value)
        return made
    if type(tree) in (list, tuple):
        return type(tree)(_copied(value) for value in tree)
    return deepcopy(tree)
