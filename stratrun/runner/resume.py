"""Where a run goes on from: a checkpoint, weights, or nothing."""

import os

from stratrun.checkpoint import read_weights
from stratrun.engine import Engine
from stratrun.errors import CheckpointError, CheckpointNotFoundError
from stratrun.runner import persistence
from stratrun.runner.form import Form
from stratrun.runner.inside import Inside


def load(runner: Inside, form: Form) -> str:
    """Put the run where it is to go on from. Returns what was done, for the user.

    Done once: a later job of the same runner goes on with what the earlier one left.
    """
    if runner.training and runner.iter == 0 and form.resume is not False:
        found = _resume(runner, form)
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
    weights = read_weights(path)
    try:
        engine.state_module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"load_from={str(path)!r} does not fit the model: {error}") from error


def _resume(runner: Inside, form: Form) -> str | None:
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
    return f"resumed from {loaded.url} (epoch {runner.epoch}, iteration {runner.iter})"
