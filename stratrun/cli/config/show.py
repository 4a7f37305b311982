"""``stratrun config show``: the values that a run would have."""

from argparse import ArgumentParser, Namespace

from stratrun.cli.arguments import Arguments, add_config_arguments
from stratrun.cli.config.rows import with_sources
from stratrun.cli.job import settle


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Secrets are shown as ***."
    add_config_arguments(parser)
    parser.add_argument(
        "--sources", action="store_true", help="beside each value the file and line, or override, that set it"
    )


def run(given: Namespace) -> int:
    config = settle(Arguments("train", given.config, tuple(given.settings), allow=tuple(given.allow)))
    print(with_sources(config.redacted()) if given.sources else config.to_yaml().rstrip("\n"))
    return 0
