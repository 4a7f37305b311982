"""``stratrun completion``: a script for a shell, with every command and option."""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any

from stratrun.cli.arguments import JOBS, job_parser
from stratrun.cli.commands import COMMANDS, group_of
from stratrun.cli.dispatch import parser_of
from stratrun.errors import ConfigError, MissingDependencyError, nearest

SHELLS = ("bash", "zsh", "tcsh")
# Options and places whose values are files.
_FILES = frozenset(
    ("config", "out", "output", "inputs", "work_dir", "work_dirs", "path", "resume", "checkpoint", "imports")
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Needs shtab: pip install 'stratrun[completion]'. Open a new shell afterwards."
    parser.add_argument("shell", metavar="|".join(SHELLS), help="the shell that the script is for")


def run(given: Namespace) -> int:
    if given.shell not in SHELLS:
        raise ConfigError(f"there is no script for the shell {given.shell!r}; {nearest(given.shell, SHELLS)}")
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "stratrun completion needs the package 'shtab', which is not installed; "
            "pip install 'stratrun[completion]'"
        ) from error
    parser = whole_parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=given.shell))
    return 0


def whole_parser() -> ArgumentParser:
    """One parser with each job and command as one below it."""
    top = ArgumentParser(prog="stratrun", allow_abbrev=False)
    below = top.add_subparsers()
    groups: dict[str, Any] = {}
    for job in JOBS:
        below.add_parser(job, parents=[job_parser(job)], add_help=False, help=f"{job} a config")
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        home = below
        if second:
            if first not in groups:
                about = ", ".join(group_of(first))
                groups[first] = below.add_parser(first, help=about).add_subparsers()
            home = groups[first]
        own = parser_of(name, import_module(command.module))
        home.add_parser(second or first, parents=[own], add_help=False, help=command.about)
    return top


def _complete_files(parser: ArgumentParser, files: Any) -> None:
    for action in parser._actions:
        if action.dest in _FILES:
            action.complete = files  # type: ignore[attr-defined]
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                _complete_files(below, files)
