"""What a run has left for whoever wants its model: a checkpoint, and the config that it was made with."""

import os
from collections.abc import Mapping
from typing import Any

from stratrun.checkpoint import StoredCheckpoint, layout
from stratrun.checkpoint.discovery import IN_WORK_DIR, look_into
from stratrun.checkpoint.selection import path_of
from stratrun.config import Config
from stratrun.config.formats import yaml
from stratrun.config.placed import PlacedDict
from stratrun.config.vetting import vet
from stratrun.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from stratrun.storage import Folder

_KEYS = ("model", "loss", "precision", "inference_cfg")


def checkpoint_of(
    work_dir: str | os.PathLike[str], name: str, options: Mapping[str, Any]
) -> tuple[str, Folder]:
    """The URL of a run's checkpoint as the user would write it, and its folder.

    Args:
        name: ``last``, ``best``, ``best:METRIC``, or that of its folder.

    Raises:
        CheckpointNotFoundError: there is none of that name; says which there are.
    """
    folder = Folder(work_dir, **options)
    if not folder.exists():
        raise CheckpointNotFoundError(f"no run in {folder}, which does not exist; check the path")
    if layout.step_of(name) is None:
        path = path_of(folder, name)
    else:
        path = f"{IN_WORK_DIR}/{name}"
        look_into(folder.child(path))
    return f"{os.fspath(work_dir).rstrip('/')}/{path}", folder.child(path)


def config_of(checkpoint: Folder, allow: tuple[str, ...]) -> Config:
    """The config that the run of a checkpoint was started with, its digest checked with the rest.

    Raises:
        CheckpointError: it was started without one.
        ConfigError: it names classes by a path that is not allowed.
    """
    text = StoredCheckpoint(checkpoint).meta.get("config")
    if not isinstance(text, str):
        raise CheckpointError(
            f"{checkpoint} has no config, as its run was started from Python without one; give model=..., or "
            "have it kept with Runner.from_cfg(...)"
        )
    return parsed(text, f"the config in {checkpoint}", allow)


def parsed(text: str, where: str, allow: tuple[str, ...]) -> Config:
    """A config from its text, which may import nothing but what is allowed."""
    tree = yaml.read(text, where)
    if not isinstance(tree, PlacedDict):
        raise ConfigError(f"{where} is no mapping of names to values")
    vet(tree, allow)
    return Config(tree)


def settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's config says how its model predicts."""
    if "model" not in config:
        raise ConfigError("the config has no 'model'; name its class, such as model: {type: MyNet}")
    return {key: config[key] for key in _KEYS if config.get(key) is not None}
