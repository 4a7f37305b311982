"""``stratrun migrate lightning``: a checkpoint of Lightning as ours."""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

# By name, as the core imports no extension.
_HOME = "stratrun_ext.migrate.lightning.command"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="CKPT", help="a file that Lightning has saved (.ckpt)")
    parser.add_argument(
        "--out", metavar="PATH", help="the weights; a .safetensors called as the source is, by default"
    )
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    parser.epilog = "Nothing that it names is run. docs/migrate_lightning.md has how classes train here."


def run(given: Namespace) -> int:
    source = Path(given.source)
    out = Path(given.out or f"{source.stem}.safetensors")
    print(import_module(_HOME).migrate_checkpoint(source, out, force=given.force))
    return 0
