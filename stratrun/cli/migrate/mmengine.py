"""``stratrun migrate mmengine``: a config or a checkpoint of MMEngine as ours."""

from argparse import ArgumentParser, Namespace
from importlib import import_module

# By name, as the core imports no extension.
_HOME = "stratrun_ext.migrate.mmengine.command"


def add_arguments(parser: ArgumentParser) -> None:
    import_module(_HOME).add_arguments(parser)


def run(given: Namespace) -> int:
    print(import_module(_HOME).migrated(given))
    return 0
