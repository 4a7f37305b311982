"""From a command line to a job of a runner."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from stratrun.cli.arguments import Arguments
from stratrun.cli.imports import import_named
from stratrun.config import Config
from stratrun.errors import MissingArgumentError

if TYPE_CHECKING:
    from stratrun.runner import Runner
    from stratrun.runner.form import Form


def do(arguments: Arguments) -> None:
    """Read the config, build the runner, do the job."""
    config = settle(arguments)
    for name in arguments.imports:
        import_named(name)
    if arguments.inputs:
        _predict_raw(arguments, config)
        return
    runner = build(arguments, config)
    if arguments.job == "predict":
        from stratrun.cli.predictions import collects, write

        predictions = runner.predict()
        if collects(config):
            write(runner, predictions)
    else:
        getattr(runner, arguments.job)()
    runner.close()


def form_of(given: Namespace, settings: Sequence[str] = ()) -> Form:
    """What a command that trains nothing reads: the form of the config that was named.

    Args:
        settings: Set after those that were typed.
    """
    arguments = Arguments(
        job="train",
        config=given.config,
        settings=(*given.settings, *settings),
        imports=tuple(given.imports),
        allow=tuple(given.allow),
    )
    config = settle(arguments)
    for name in arguments.imports:
        import_named(name)
    return build(arguments, config)._form


def settle(arguments: Arguments) -> Config:
    """The config, with what the options say and the defaults of the command line."""
    config = Config.load(arguments.config, arguments.settings, arguments.allow)
    config.setdefault("name", PurePath(arguments.config).stem)
    if arguments.work_dir is not None:
        config["work_dir"] = arguments.work_dir
    if arguments.resume is not False:
        config["resume"] = arguments.resume
    if arguments.checkpoint is not None:
        config["load_from"] = _checkpoint(arguments.checkpoint, config)
    if arguments.job != "train" and config.get("work_dir") is None:
        config["work_dir"] = _home(config)
    return config


def _checkpoint(given: str, config: Config) -> str | dict[str, Any]:
    """What `--checkpoint` says as `load_from`, which the config may say more about than the path."""
    # Here, as it brings torch, which a command line that is wrong can do without.
    from stratrun.checkpoint import layout

    path = given
    if layout.step_of(given) is not None:
        home = config.get("work_dir") or Path("work_dirs", config["name"])
        path = f"{str(home).rstrip('/')}/checkpoints/{given}"
    before = config.get("load_from")
    return {**before, "path": path} if isinstance(before, Mapping) else path


def _predict_raw(arguments: Arguments, config: Config) -> None:
    """Raw inputs, by the Inferencer."""
    from stratrun.checkpoint.selection import split_name
    from stratrun.cli import raw_inputs
    from stratrun.storage.urls import redacted

    files = raw_inputs.check(arguments.inputs)
    given = config.get("load_from")
    path = given.get("path") if isinstance(given, Mapping) else given
    if path is None:
        raise MissingArgumentError(
            "which weights? give --checkpoint last, --checkpoint best, or the path of a checkpoint"
        )
    work_dir = str(config["work_dir"]).rstrip("/")
    folder, name = split_name(str(path))
    if name is not None and not folder:
        path = f"{work_dir}/{name}"
    out = arguments.out or f"{work_dir}/predictions.jsonl"
    raw_inputs.check_out(out, files)
    access = (config.get("checkpoint_cfg") or {}).get("storage_options") or {}
    own = given if isinstance(given, Mapping) else {}
    config["load_from"] = {"storage_options": access if "://" in str(path) else {}, **own, "path": path}
    count = raw_inputs.predict(config, files, out, access if "://" in out else {})
    print(f"  predictions: {count}, one a line, in {redacted(out)}")


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
