"""Where a run goes on from: a checkpoint, weights, or nothing."""

import os
from collections.abc import Mapping
from typing import Any

from stratrun.checkpoint import look_into, missing, read_weights
from stratrun.distributed import Collectives
from stratrun.engine import Engine
from stratrun.errors import CheckpointError, CheckpointNotFoundError
from stratrun.runner import persistence
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form
from stratrun.storage import Folder


def check(runner: RunnerContext, ranks: Collectives, form: Form, job: str) -> None:
    """Refuse a run that has nothing to go on from, or would get into another's way, before it is built.

    Raises:
        CheckpointError: there is no such checkpoint, or `work_dir` holds those of another run.
    """
    if job == "train" and runner.iter == 0:
        if form.resume is False:
            runner.checkpointer.claim()
        elif form.resume != "auto":
            folder = runner.checkpointer.folder if form.resume is True else Folder(os.fspath(form.resume))
            error = _no_checkpoint(f"resume={form.resume!r}", folder) if ranks.is_main else None
            ranks.agree(error, "resuming")
    if form.load_from is not None and not runner.has_weights:
        ranks.agree(_no_weights(form.load_from) if ranks.is_main else None, "loading weights")


def _no_checkpoint(given: str, folder: Folder) -> Exception | None:
    """Why nothing can be resumed from there. Returned, as the other ranks wait to be told."""
    try:
        look_into(folder)
    except CheckpointNotFoundError as error:
        return CheckpointNotFoundError(f"{given}: {error}; resume='auto' starts anew where there is none")
    except Exception as error:
        return error
    return None


def _no_weights(path: str | os.PathLike[str]) -> Exception | None:
    """Why no weights can be loaded from there. Returned, as the other ranks wait to be told."""
    try:
        if Folder(path).exists():
            return None
        return CheckpointNotFoundError(f"load_from={str(path)!r}: {missing(Folder(path))}")
    except Exception as error:
        return error


def load(runner: RunnerContext, ranks: Collectives, form: Form) -> str:
    """Put the run where it is to go on from. Returns what was done, for the user.

    Done once: a later job of the same runner goes on with what the earlier one left.
    """
    if runner.training and runner.iter == 0 and form.resume is not False:
        found = _resume(runner, ranks, form)
        if found is not None:
            runner.has_weights = True
            return found
    if runner.training:
        runner.checkpointer.claim(after=runner.iter if runner.iter else -1)
    if form.load_from is not None and not runner.has_weights:
        load_weights(runner.engine, form.load_from)
        runner.has_weights = True
        return f"weights from {form.load_from}"
    if runner.training:
        runner.has_weights = True
        return "a new start"
    return f"weights as {'they are now' if runner.has_weights else 'the model was built with'}"


def load_weights(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Weights alone, every name and shape as the model has them.

    Raises:
        CheckpointError: some differ; says which.
    """
    given = f"load_from={str(path)!r}"
    try:
        weights = read_weights(path)
    except CheckpointError as error:
        raise type(error)(f"{given}: {error}") from error
    misfits = _misfits(weights, engine.state_module.state_dict())
    if misfits:
        raise CheckpointError(f"{given} does not fit the model: {misfits}")
    try:
        engine.state_module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{given} does not fit the model: {error}") from error


def _misfits(weights: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How names and shapes differ from the model's; nothing where they do not."""
    lacking, foreign = (
        [name for name in own if name not in weights],
        [name for name in weights if name not in own],
    )
    told = []
    if lacking:
        told.append(f"it lacks {_some(lacking)}")
    if foreign:
        told.append(f"it has {_some(foreign)}, which the model has not")
    for name in own:
        shapes = [tuple(getattr(one.get(name), "shape", ())) for one in (weights, own)]
        if name in weights and shapes[0] != shapes[1]:
            told.append(f"{name!r} has the shape {shapes[0]}, and {shapes[1]} in the model")
    return "; ".join(told[:4])


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _resume(runner: RunnerContext, ranks: Collectives, form: Form) -> str | None:
    which = "latest" if form.resume in (True, "auto") else os.fspath(form.resume)
    try:
        loaded = runner.checkpointer.load(which)
    except CheckpointNotFoundError as error:
        if form.resume == "auto":
            return None
        hint = "resume='auto' starts anew where there is none"
        raise CheckpointNotFoundError(f"resume={form.resume!r}: {error}; {hint}") from error
    runner.reseed(loaded.shared["seed"])
    persistence.restore_shared(runner, loaded.shared)
    runner.checkpointer.claim(after=runner.iter)
    runner.call_hooks("after_load_checkpoint", checkpoint=loaded.shared)
    persistence.restore_own(runner, loaded.own, loaded.shared["data"])
    told = f"resumed from {loaded.url} (epoch {runner.epoch}, iteration {runner.iter})"
    saved = loaded.meta["world_size"]
    if saved != ranks.world_size and loaded.own is not None and loaded.own["engine"]["window"]:
        told += f"; saved within an accumulation window on {saved} ranks: its update will not be exact"
    return told
