"""``dev_cfg=dict(fast_dev_run=...)``: each branch of a run once, of which nothing is left.

The job's data, its epochs and its loggers are cut down in the form, so that all else is as in a whole run.
Files go to a folder of their own in the work dir, as they would in earnest, and are removed with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from stratrun.checkpoint.selection import split_name
from stratrun.errors import ConfigError, StratrunError
from stratrun.hooks import CheckpointHook, Hook
from stratrun.hooks.base import PRIORITIES
from stratrun.loggers import ConsoleLogger, Logger
from stratrun.registry.spec import edited
from stratrun.runner import persistence
from stratrun.runner.developing import parse_dev
from stratrun.runner.form import Form
from stratrun.storage import Folder
from stratrun.storage.local import missing_folders, remove_empty

if TYPE_CHECKING:
    from stratrun.runner.context import RunnerContext

_LOG = logging.getLogger("stratrun.runner")


def cut_down(form: Form) -> Form:
    """The form of a trial run, if one is asked for. What is wrong in a form stays for the checks."""
    try:
        batches = parse_dev(form.dev_cfg).fast_dev_run
    except ConfigError:
        return form
    if not batches:
        return form
    control = form.control_cfg
    return replace(
        form,
        train_cfg=_once(form.train_cfg, batches),
        loggers=_console_of(form.loggers),
        load_from=_within(form.load_from, form.work_dir),
        resume=False,
        control_cfg=edited(control, drop=["requeue"]) if isinstance(control, Mapping) else control,
    )


class TrialHook(Hook):
    """Saves what was trained, and loads it into the run again."""

    # Behind the hook that saves at the end.
    priority: ClassVar[int] = PRIORITIES["LOWEST"]

    def after_train(self, runner: RunnerContext) -> None:
        if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            return
        runner.save_checkpoint()
        runner.checkpointer.wait()
        loaded = runner.checkpointer.load(runner.iter, runner.engine.saved.rooms.room)
        persistence.restore_shared(runner, loaded.shared)
        runner.call_hooks("after_load_checkpoint", checkpoint=loaded.shared)
        persistence.restore_own(runner, loaded)
        runner.last_checkpoint = None
        runner.loggers.say("stratrun: fast_dev_run: the checkpoint was written, read and loaded")


class Traces:
    """The folder that all files of a trial run go to."""

    def __init__(self, work_dir: str, **options: Any) -> None:
        self._folder = Folder(work_dir, **options)
        path = self._folder.local_path()
        # Those above it that are not there yet are of this run too.
        self._made = [] if path is None else missing_folders(str(Path(path).absolute()))

    def remove(self) -> None:
        """Remove it, and what was made for it. What cannot be removed is told, and left."""
        try:
            self._folder.parent.remove(self._folder.name)
        except (OSError, StratrunError) as error:
            _LOG.warning("fast_dev_run has left %s, which could not be removed: %s", self._folder, error)
        remove_empty(self._made)


def place_of(work_dir: str) -> str:
    """Where a trial run has its files: where those of the whole run go, and apart from them."""
    return f"{work_dir.rstrip('/')}/fast_dev_run-{uuid4().hex[:8]}"


def _once(train_cfg: Any, batches: int) -> Any:
    """One epoch of so many batches, with a validation after it, by the names that our loops have."""
    if not isinstance(train_cfg, Mapping):
        return train_cfg
    put = {"max_epochs": 1, "max_iters": batches, "val_begin": 1, "val_interval": 1}
    return edited(
        train_cfg,
        drop=["dynamic_intervals", "val_minutes"],
        put={key: value for key, value in put.items() if train_cfg.get(key) is not None},
    )


def _console_of(loggers: Any) -> Any:
    listed = [loggers] if isinstance(loggers, str | Mapping | type | Logger) else loggers
    if not isinstance(listed, list | tuple) or not listed:
        return loggers
    return [one for one in listed if _is_console(one)] or ["console"]


def _is_console(spec: Any) -> bool:
    kind = spec.get("type") if isinstance(spec, Mapping) else spec
    if isinstance(kind, type):
        return issubclass(kind, ConsoleLogger)
    return kind == "console" or isinstance(kind, ConsoleLogger)


def _within(load_from: Any, work_dir: Any) -> Any:
    """The same weights, where a name is one in the work dir of the whole run."""
    given = load_from.get("path") if isinstance(load_from, Mapping) else load_from
    if work_dir is None or given is None:
        return load_from
    folder, name = split_name(given)
    if folder or name is None:
        return load_from
    path = f"{str(work_dir).rstrip('/')}/{name}"
    return edited(load_from, put={"path": path}) if isinstance(load_from, Mapping) else path
