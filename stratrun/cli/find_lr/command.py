"""``stratrun find-lr``: a learning-rate range test of a config."""

import os
from argparse import ArgumentParser, Namespace
from inspect import signature
from typing import TYPE_CHECKING

from stratrun.cli.arguments import Arguments, add_config_arguments
from stratrun.errors import ConfigError

if TYPE_CHECKING:
    from stratrun.runner.lr_curve import FoundLR


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Training steps are made at rising rates, and nothing is saved or logged. Under torchrun too:\n"
        "torchrun --nproc_per_node=2 -m stratrun find-lr CONFIG --start-lr 1e-6\n"
        "(torchrun would take --start for an option of its own)"
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--start", "--start-lr", metavar="RATE", type=float, help="the first rate; default 1e-7"
    )
    parser.add_argument("--end", "--end-lr", metavar="RATE", type=float, help="the last rate; default 10")
    parser.add_argument("--iters", metavar="N", type=int, help="how many updates; default 100")
    parser.add_argument("--scale", metavar="exp|linear", help="how rates rise; default exp")
    parser.add_argument("--smoothing", metavar="B", type=float, help="of the loss; default 0.9")
    parser.add_argument(
        "--diverged",
        metavar="TIMES",
        type=float,
        help="end where the loss is so many times its best; default 4",
    )
    parser.add_argument("--optimizer", metavar="NAME", help="whose rate, where there are several")
    parser.add_argument("--loss", metavar="NAME", help="the value of steps that is looked at; default loss")
    parser.add_argument(
        "--out",
        metavar="FILE",
        action="append",
        default=[],
        help="draw into this .png, .svg or .pdf, or write the numbers as .json; may be given several times",
    )


def run(given: Namespace) -> int:
    _check(given)
    # Only now: these import torch, which takes seconds.
    from stratrun.cli.find_lr.text import as_text
    from stratrun.cli.imports import import_named
    from stratrun.cli.job import build, settle
    from stratrun.runner import Runner
    from stratrun.runner.lr_curve import check_picture

    for path in given.out:
        if not path.endswith(".json"):
            check_picture(path)
    arguments = Arguments(
        job="train",
        config=given.config,
        settings=tuple(given.settings),
        imports=tuple(given.imports),
        allow=tuple(given.allow),
    )
    config = settle(arguments)
    for name in arguments.imports:
        import_named(name)
    runner = build(arguments, config)
    options = {name: getattr(given, name) for name in signature(Runner.find_lr).parameters if name != "self"}
    found = runner.find_lr(**{name: value for name, value in options.items() if value is not None})
    if runner.rank == 0:
        print(as_text(found))
        for path in given.out:
            _write(found, path)
            print(f"{path}: {len(found.lrs)} rates")
    runner.close()
    return 0


def _write(found: "FoundLR", path: str) -> None:
    if not path.endswith(".json"):
        found.plot(path)
        return
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(found.to_json() + "\n")


def _check(given: Namespace) -> None:
    for path in given.out:
        folder = os.path.dirname(path)
        if folder and not os.path.isdir(folder):
            raise ConfigError(f"--out {path}: there is no folder {folder}; make it first")
        if os.path.isdir(path):
            raise ConfigError(f"--out {path}: is a folder; name a file in it")
