"""One of the trainings: the user's job, cut short, in a folder of its own."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from stratrun.cli.arguments import Arguments
from stratrun.cli.imports import import_named
from stratrun.cli.job import build, settle
from stratrun.cli.verify_resume.hidden import hidden_state
from stratrun.cli.verify_resume.part import Part
from stratrun.config import Config
from stratrun.errors import ConfigError
from stratrun.hooks import Hook

_PATIENCE = 1800.0


def play(given: Namespace, part: Part) -> None:
    arguments = Arguments(
        "train", given.config, tuple(given.settings), tuple(given.imports), tuple(given.allow)
    )
    config = settle(arguments)
    _adapt(config, part)
    for name in given.imports:
        import_named(name)
    runner = build(arguments, config)
    runner.train()
    runner.close()


class Watch(Hook):
    """Saves where the run is to be killed and where it ends, and ends it there."""

    # Behind all others, whose doings are to be in the checkpoint.
    priority = 99

    def __init__(self, part: Part) -> None:
        self._part = part
        self._length = part.iters
        self._at = part.at or 0

    def after_load_checkpoint(self, runner: Any) -> None:
        if runner.rank == 0:
            self._part.resumed_from.write_text(str(runner.iter))

    def before_train(self, runner: Any) -> None:
        part = self._part
        self._length = min(part.iters, runner.max_iters or part.iters)
        self._at = part.at or max(1, (self._length - 1) // 2)
        if self._at >= self._length:
            raise ConfigError(
                f"training ends after iteration {self._length}, and is to be killed after a checkpoint of "
                f"iteration {self._at}; use a smaller --at, or have it train longer"
            )
        if part.role == "whole" and runner.rank == 0:
            part.plan.write_text(json.dumps({"at": self._at, "iters": self._length}))
        if part.role == "broken":
            part.processes.mkdir(exist_ok=True)
            (part.processes / str(os.getpid())).touch()

    def before_train_iter(self, runner: Any) -> None:
        if runner.iter >= self._length:
            raise ConfigError(
                f"the train loop goes on after iteration {self._length} though runner.state.should_stop is "
                "set; have it look there after each iteration, or set the length in train_cfg to --iters"
            )

    def after_train_iter(self, runner: Any) -> None:
        if runner.iter == self._at:
            runner.save_checkpoint()
        elif runner.iter > self._at and self._part.role == "broken":
            # With work behind the checkpoint that is lost. It may still be being written.
            time.sleep(_PATIENCE)
            raise RuntimeError("was to be killed, and was not")
        if runner.iter >= self._length:
            runner.request("stop", agreed=True)

    def after_train(self, runner: Any) -> None:
        runner.save_checkpoint()
        if runner.rank == 0:
            self._part.hidden.write_text(json.dumps(hidden_state(runner)))


def _adapt(config: Config, part: Part) -> None:
    """Change where files go and when they are written, and nothing that training depends on."""
    config["work_dir"] = part.folder
    config["resume"] = part.role == "resumed"
    if part.role == "resumed":
        config.pop("load_from", None)
    config["loggers"] = ["jsonl"]
    randomness = config.get("randomness") or {}
    if isinstance(randomness, Mapping) and randomness.get("seed") is None:
        config["randomness"] = {**randomness, "seed": 0}
    saving = config.get("checkpoint_cfg")
    if isinstance(saving, Mapping):
        # Those are for the store of the user's work dir.
        config["checkpoint_cfg"] = {name: v for name, v in saving.items() if name != "storage_options"}
    hooks = config.get("default_hooks") or {}
    if isinstance(hooks, Mapping):
        changed = dict(hooks)
        if _is_ours(hooks.get("checkpoint"), "CheckpointHook"):
            changed["checkpoint"] = None
        logger = hooks.get("logger")
        if _is_ours(logger, "LoggerHook"):
            changed["logger"] = {**(logger if isinstance(logger, Mapping) else {}), "interval": 1}
        config["default_hooks"] = changed
    own = config.get("custom_hooks") or []
    if isinstance(own, list | tuple):
        config["custom_hooks"] = [*own, Watch(part)]


def _is_ours(spec: Any, name: str) -> bool:
    kind = spec.get("type", name) if isinstance(spec, Mapping) else spec
    return kind in (None, False, True, name)
