"""``stratrun plan``: what a run needs on so many ranks, without starting them."""

import os
import re
from argparse import ArgumentParser, Namespace

from stratrun.cli.arguments import add_config_arguments
from stratrun.errors import ConfigError

_POWERS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BANDWIDTH = "1GB"


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Nothing is trained, and no memory taken: one process goes through three updates of rank 0, with\n"
        "tensors that have no values, and counts. One batch is read from the data of the config.\n"
        "Sizes are in powers of 1000."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "-n", "--world-size", metavar="N", type=int, default=1, help="how many ranks there are; default 1"
    )
    parser.add_argument(
        "--per-node", metavar="K", type=int, help="how many of them are on a machine; default 8, or all"
    )
    parser.add_argument("--strategy", metavar="NAME", help="in place of the one in the config")
    parser.add_argument(
        "--batch-size", metavar="B", type=int, help="samples of a batch on one rank, in place of the config's"
    )
    parser.add_argument(
        "--bandwidth",
        metavar="SIZE",
        default=_BANDWIDTH,
        help=f"what the store of checkpoints takes in a second, such as 500MB; default {_BANDWIDTH}",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(given: Namespace) -> int:
    _check(given)
    bandwidth = bytes_of(given.bandwidth)
    # Only now: it imports torch, which takes seconds.
    from stratrun.cli.plan.planning import plan
    from stratrun.cli.plan.report import as_json, as_text

    found = plan(given, bandwidth)
    print(as_json(found) if given.json else as_text(found))
    return 0


def bytes_of(text: str) -> float:
    """
    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)B?(?:/s)?", text)
    value = float(found[1]) * _POWERS[found[2].upper()] if found else 0.0
    if not value:
        raise ConfigError(f"--bandwidth {text}: must be a size above 0, such as 500MB or 2GB")
    return value


def _check(given: Namespace) -> None:
    for option, value in (("world-size", given.world_size), ("batch-size", given.batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"--{option} {value}: must be at least 1")
    if given.per_node is not None and (given.per_node < 1 or given.world_size % given.per_node):
        raise ConfigError(
            f"--per-node {given.per_node}: the {given.world_size} of --world-size must be a multiple of it"
        )
    if "RANK" in os.environ:
        raise ConfigError("plan starts no processes; run it without torchrun, with --world-size N")
