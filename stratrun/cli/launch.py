"""``stratrun launch``: a job or a program on several processes."""

import os
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

from stratrun.cli.arguments import JOBS
from stratrun.cli.commands import COMMANDS
from stratrun.errors import ConfigError, nearest


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = "stratrun launch [-n N] [options] (JOB CONFIG ... | FILE.py ... | -m MODULE ...)"
    parser.epilog = (
        "Options of launch come first; from the first other word on everything belongs to what is started.\n"
        "In a job of Slurm on several machines nothing need be said of them:\n"
        "  sbatch --nodes=4 --gpus-per-node=8 --wrap 'stratrun launch -n 8 train digits.yaml --resume auto'"
    )
    parser.add_argument(
        "-n",
        "--per-node",
        metavar="N",
        type=_count(1),
        help="processes on this machine, and on each other; default one on each GPU",
    )
    parser.add_argument("--nodes", metavar="N", type=_count(1), help="machines, each given the same command")
    parser.add_argument(
        "--node", metavar="R", type=_count(0), help="which of them this is; default: as they come"
    )
    parser.add_argument("--rendezvous", metavar="HOST[:PORT]", help="the one that all others reach")
    parser.add_argument("--id", metavar="NAME", dest="run_id", help="tells runs at one place apart")
    parser.add_argument(
        "--restarts", metavar="N", type=_count(0), default=0, help="start all anew when one fails, so often"
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_count(0),
        help="time to save after a signal; default 30, torchrun's",
    )
    parser.add_argument(
        "--launcher", metavar="NAME", help="torchrun, slurm, or a plugin's; default: what fits"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the command")


def run(given: Namespace) -> int:
    target = _target(given.rest)
    if "RANK" in os.environ:
        raise ConfigError(
            "this is a process that torchrun has started already (RANK is set); write the job without "
            "'stratrun launch', or launch without torchrun"
        )
    # Only now: these import torch, which takes seconds.
    from stratrun.launch import Job
    from stratrun.launch.slurm import is_several
    from stratrun.registry import LAUNCHERS

    fields = ("nodes", "node", "rendezvous", "run_id", "restarts", "grace")
    told = {name: getattr(given, name) for name in fields}
    job = Job(target=target, per_node=given.per_node or _gpus(), **told)
    name = given.launcher or ("slurm" if given.nodes is None and is_several(os.environ) else "torchrun")
    start = LAUNCHERS.build(name, where="launcher").start(job)
    if given.dry_run:
        pairs = [f"{key}={shlex.quote(value)}" for key, value in start.environment.items()]
        print(" ".join([*pairs, shlex.join(start.command)]))
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Signals and the exit code then are torchrun's own.
    try:
        os.execvpe(start.command[0], start.command, {**os.environ, **start.environment})
    except OSError as error:
        raise ConfigError(f"{start.command[0]!r} cannot be started: {error.strerror or error}") from error


def _target(rest: list[str]) -> tuple[str, ...]:
    """What torchrun is to start.

    Raises:
        ConfigError: it is no job, and no program that there is.
    """
    if rest[:1] == ["-m"] and len(rest) > 1:
        return tuple(rest)
    if not rest or rest == ["-m"]:
        raise ConfigError(
            "what shall be launched? write: stratrun launch -n 2 train CONFIG, or "
            "stratrun launch -n 2 train.py"
        )
    first = rest[0]
    known = {*JOBS, *(name.partition(" ")[0] for name in COMMANDS)} - {"launch"}
    if first in known:
        return "-m", "stratrun", *rest
    if first.endswith(".py"):
        if not Path(first).is_file():
            found = [str(one) for one in sorted(Path(first).parent.glob("*.py"))]
            hint = nearest(first, found) if found else "there is no Python file in that folder"
            raise ConfigError(f"there is no file {first!r} to launch; {hint}")
        return tuple(rest)
    if first.endswith((".yaml", ".yml", ".toml", ".json")):
        raise ConfigError(f"which job of {first}? write: stratrun launch train {first}")
    raise ConfigError(
        f"{first!r} is no job and no Python file; {nearest(first, known)} (a module is given as -m MODULE)"
    )


def _gpus() -> int:
    from torch import cuda

    count = int(cuda.device_count())
    if not count:
        raise ConfigError("how many processes? no GPU is here to go by; write: stratrun launch -n 2 ...")
    return count


def _count(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return convert
