"""From a command line to a job of a runner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from stratrun.cli.arguments import Arguments
from stratrun.cli.imports import import_named
from stratrun.config import Config

if TYPE_CHECKING:
    from stratrun.runner import Runner


def do(arguments: Arguments) -> None:
    """Read the config, build the runner, do the job."""
    config = settle(arguments)
    for name in arguments.imports:
        import_named(name)
    runner = build(arguments, config)
    if arguments.job == "predict":
        from stratrun.cli.predictions import write

        write(runner, runner.predict())
    else:
        getattr(runner, arguments.job)()
    runner.close()


def settle(arguments: Arguments) -> Config:
    """The config, with what the options say and the defaults of the command line."""
    config = Config.load(arguments.config, arguments.settings, arguments.allow)
    config.setdefault("name", PurePath(arguments.config).stem)
    if arguments.work_dir is not None:
        config["work_dir"] = arguments.work_dir
    if arguments.resume is not False:
        config["resume"] = arguments.resume
    if arguments.job != "train" and config.get("work_dir") is None:
        config["work_dir"] = _home(config)
    return config


def build(arguments: Arguments, config: Config) -> Runner:
    """The runner of a config; it knows how it was started, to say how to go on."""
    from stratrun.runner import Runner
    from stratrun.runner.invocation import Invocation

    runner = Runner.from_cfg(config)
    runner.invocation = Invocation(
        config=arguments.config,
        settings=arguments.settings,
        options=(
            *(word for name in arguments.imports for word in ("--import", name)),
            *(word for prefix in arguments.allow for word in ("--allow", prefix)),
        ),
    )
    return runner


def _home(config: Config) -> str:
    """Where the files of an evaluation go: beside the weights, if a run of ours made them."""
    # Here, as it brings torch, which a command line that is wrong can do without.
    from stratrun.checkpoint.selection import split_name

    given = config.get("load_from")
    weights = str((given.get("path") if isinstance(given, Mapping) else given) or "").rstrip("/")
    folder, name = split_name(weights)
    if name is not None and folder:
        return folder.removesuffix("/checkpoints")
    run, checkpoints, _ = weights.rpartition("/checkpoints/")
    return run if checkpoints and run else str(Path("work_dirs", config["name"]))
