"""``stratrun verify-resume``: is a job, killed and resumed, the one that was never killed?"""

import os
from argparse import ArgumentParser, Namespace

from stratrun.cli.arguments import add_config_arguments
from stratrun.errors import ConfigError

_ITERATIONS = 8


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Trains in a temporary folder, so the work dir is left alone. Exit code 0: equal to the bit; 1: not, "
        "with what differs."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--at",
        metavar="N",
        type=int,
        help="be killed once the checkpoint of iteration N is there; by default one before the middle",
    )
    parser.add_argument(
        "--iters",
        metavar="M",
        type=int,
        default=_ITERATIONS,
        help=f"stop after M iterations, unless the config ends before; default {_ITERATIONS}",
    )
    parser.add_argument(
        "-n",
        "--nproc",
        metavar="P",
        type=int,
        default=1,
        help="train on P processes of this machine; default 1",
    )


def run(given: Namespace) -> int:
    from stratrun.cli.verify_resume.part import Part

    part = Part.from_environ(os.environ)
    if part is not None:
        from stratrun.cli.verify_resume.child import play

        play(given, part)
        return 0
    _check(given)
    from stratrun.cli.verify_resume.trial import verify

    return verify(given)


def _check(given: Namespace) -> None:
    if given.iters < 2:
        raise ConfigError(f"--iters {given.iters}: to be killed in between, a run needs 2 or more")
    if given.at is not None and not 0 < given.at < given.iters:
        raise ConfigError(f"--at {given.at}: must be at least 1, and less than the {given.iters} of --iters")
    if given.nproc < 1:
        raise ConfigError(f"--nproc {given.nproc}: must be at least 1")
    if "RANK" in os.environ:
        raise ConfigError("verify-resume starts processes itself; run it without torchrun, with --nproc P")
