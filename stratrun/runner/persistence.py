"""What a checkpoint of a run consists of, and how it is put back."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import torch

from stratrun.checkpoint.reader import Loaded
from stratrun.data import Feed
from stratrun.engine import Engine
from stratrun.errors import CheckpointError
from stratrun.hooks import CheckpointHook, Hook
from stratrun.hooks.dispatch import HookList
from stratrun.loggers import RecordBuffer, merged
from stratrun.optim import Schedule
from stratrun.runner import settings
from stratrun.seed import derive_seed, host_rng_state, seed_everything, set_host_rng_state
from stratrun.state import TrainState


class Savable(Protocol):
    """A run, as far as its state goes."""

    state: TrainState
    metrics: dict[str, float]

    @property
    def engine(self) -> Engine: ...
    @property
    def schedules(self) -> Sequence[Schedule]: ...
    @property
    def hooks(self) -> HookList: ...
    @property
    def records(self) -> RecordBuffer: ...
    @property
    def train_dataloader(self) -> Feed | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def data_rank(self) -> int: ...
    @property
    def reasons(self) -> list[str]: ...


def shared_state(runner: Savable) -> dict[str, Any]:
    """State that is the same on every rank."""
    return {**runner.engine.saved.shared_state(), **beside_engine(runner)}


def beside_engine(runner: Savable) -> dict[str, Any]:
    """The small part of the shared state: what neither the model nor an optimizer holds."""
    return {
        "counters": runner.state.state_dict(),
        "schedules": [schedule.state_dict() for schedule in runner.schedules],
        "hooks": {name: hook.state_dict() for name, hook in named_hooks(runner.hooks).items()},
        "data": {key: value for key, value in _feed_state(runner).items() if key != "loader"},
        "seed": runner.seed,
        "settings": runner.engine.settings,
    }


def own_state(runner: Savable, *, records: bool = True) -> dict[str, Any]:
    """State of this rank alone. The generators come last: reading other state might draw.

    Args:
        records: Whether with the values of training steps, which are then read from the device.
    """
    return {
        "engine": runner.engine.saved.own_state(),
        "loader": _feed_state(runner).get("loader"),
        **({"records": runner.records.state_dict()} if records else {}),
        "rng": host_rng_state(),
    }


def describe(runner: Savable) -> dict[str, Any]:
    """Plain facts, for whoever looks into a checkpoint, and for finding the best by name."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    return {
        "epoch": runner.state.epoch,
        "iter": runner.state.iter,
        "updates": runner.state.step,
        "metrics": dict(runner.metrics),
        "best": {metric: found for hook in hooks for metric, found in hook.best.items()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "reasons": list(runner.reasons),
    }


def restore_shared(runner: Savable, state: dict[str, Any]) -> list[str]:
    """Put back what `shared_state` returned.

    Returns:
        What the user should know that is other than it was, a line on each.

    Raises:
        CheckpointError: the run is built of other parts than the one that was saved.
    """
    runner.engine.saved.load_shared_state(state)
    runner.state.load_state_dict(state["counters"])
    if len(state["schedules"]) != len(runner.schedules):
        raise CheckpointError(
            f"the checkpoint has {len(state['schedules'])} learning rate schedules, this run "
            f"{len(runner.schedules)}; use the same param_scheduler, or only the weights, with load_from="
        )
    for schedule, saved in zip(runner.schedules, state["schedules"], strict=True):
        schedule.load_state_dict(saved)
    hooks = named_hooks(runner.hooks)
    for name, hook in hooks.items():
        if name in state["hooks"]:
            hook.load_state_dict(state["hooks"][name])
    given, saved = runner.engine.settings, state.get("settings", {})
    runner.engine.settings = settings.gone_on_with(given, saved)
    return settings.differences(given, saved) + settings.hook_differences(hooks, state["hooks"])


def restore_own(runner: Savable, loaded: Loaded) -> None:
    """Put back what `own_state` returned, and the gradients of the shared state.

    Where samples were shared out over another number of ranks, what those have in common, an open
    accumulation window and sums for means, is shared out anew.
    """
    state, owns = loaded.own, loaded.owns
    loader = None if state is None else state["loader"]
    if runner.train_dataloader is not None:
        own = {} if loader is None else {"loader": loader}
        runner.train_dataloader.load_state_dict({**loaded.shared["data"], **own})
    runner.engine.saved.load_own_state(
        None if state is None else state["engine"],
        [own["engine"] for own in owns],
        loaded.shared.get("gradients"),
        same_ranks=loaded.same_ranks,
    )
    # A run that broke off in the middle of an iteration saves no values of steps.
    if owns and runner.rank == 0:
        runner.records.load_state_dict(merged([own["records"] for own in owns if "records" in own]))
    elif not owns and state is not None and "records" in state:
        runner.records.load_state_dict(state["records"])
    if state is None:
        reseed(runner, runner.seed)
    else:
        set_host_rng_state(state["rng"])


def reseed(runner: Savable, seed: int) -> None:
    """Give a rank generators that none of the saved run had. Ranks with the same samples get the same."""
    seed_everything(derive_seed(seed, "rank", runner.data_rank, "iter", runner.state.iter))


def _feed_state(runner: Savable) -> dict[str, Any]:
    feed = runner.train_dataloader
    return {} if feed is None else feed.state_dict()


def named_hooks(hooks: Any) -> dict[str, Hook]:
    """Each hook by the name of its class, the second of a class with a number behind it."""
    named: dict[str, Hook] = {}
    for hook in hooks:
        name = type(hook).__name__
        count = sum(key.partition("#")[0] == name for key in named)
        named[f"{name}#{count + 1}" if count else name] = hook
    return named
