"""The command line: a page for each command, from the parsers that read it."""

from __future__ import annotations

import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from importlib import import_module

from reference import rst
from stratrun.cli import arguments
from stratrun.cli.commands import COMMANDS
from stratrun.cli.dispatch import parser_of

_JOB = re.compile(r"^  (\w+) {2,}(.+)$", re.M)
_CODE = re.compile(r"^  (\d+) +(.+)$", re.M)


def pages() -> Iterator[tuple[str, str]]:
    found = _CODE.findall(arguments._EXAMPLES.partition("exit codes:")[2])
    codes = [[rst.code(code), rst.plain(text)] for code, text in found]
    groups: dict[str, list[str]] = {}
    for name in COMMANDS:
        groups.setdefault(name.partition(" ")[0], []).append(name)
    jobs = [[f":doc:`stratrun {job} <cli/jobs>`", rst.plain(about)] for job, about in _jobs().items()]
    rows = [
        [f":doc:`stratrun {name} <cli/{name.partition(' ')[0]}>`", rst.plain(command.about)]
        for name, command in COMMANDS.items()
    ]
    yield (
        "cli",
        rst.page(
            rst.title("Command line"),
            "``stratrun COMMAND --help`` says the same on a terminal. "
            ":doc:`How to use it </command_line>` has a page of its own.",
            rst.table(["command", ""], [*jobs, *rows], "35 65"),
            ".. _exit-codes:\n",
            rst.title("Exit codes", "-"),
            rst.table(
                ["code", ""],
                codes,
                "10 90",
            ),
            ".. toctree::\n   :hidden:\n\n   cli/jobs\n" + "".join(f"   cli/{first}\n" for first in groups),
        ),
    )
    yield "cli/jobs", _page_of_jobs()
    for first, names in groups.items():
        yield f"cli/{first}", _commands(first, names)


def _jobs() -> dict[str, str]:
    """What each job does, as ``stratrun --help`` has it."""
    found = dict(_JOB.findall(arguments._DESCRIPTION))
    return {job: found[job] for job in arguments.JOBS}


def _page_of_jobs() -> str:
    examples = arguments._EXAMPLES.partition("\n\n")[0].partition("\n")[2]
    about = "\n".join(f"``stratrun {job}``\n   {rst.plain(text)}\n" for job, text in _jobs().items())
    return rst.page(
        rst.title("train, val, test, predict"),
        "A job of a run that a config describes.",
        about,
        rst.block("stratrun train|val|test|predict CONFIG [key=value ...] [options]", kind="usage"),
        _options("train", arguments.job_parser("train")),
        rst.title("Examples", "-"),
        rst.block("\n".join(line.strip() for line in examples.splitlines()), "bash"),
        _ends(),
    )


def _commands(first: str, names: list[str]) -> str:
    if names == [first]:
        return rst.page(rst.title(f"stratrun {first}"), *_command(first, "-"), _ends())
    pieces = [rst.title(f"stratrun {first}")]
    for name in names:
        pieces += [rst.title(name, "-"), *_command(name, "^")]
    return rst.page(*pieces, _ends())


def _command(name: str, line: str) -> list[str]:
    command = COMMANDS[name]
    parser = parser_of(name, import_module(command.module))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    note = (parser.epilog or "").partition("examples:\n")[0].strip()
    if command.opens:
        usage += " ..."
    return [
        f"{rst.plain(command.about[0].upper() + command.about[1:])}.",
        rst.block(usage, kind="usage"),
        _options(name, parser),
        rst.block(note, kind="usage") if note else "",
        rst.title("Examples", line),
        rst.block("\n".join(f"stratrun {name} {one}".rstrip() for one in command.examples), "bash"),
    ]


def _options(name: str, parser: ArgumentParser) -> str:
    shown = [action for action in parser._actions if action.help != SUPPRESS and action.dest != "help"]
    told = [f".. option:: {_spelling(action)}\n\n   {_about(action)}\n" for action in shown]
    return "\n".join([f".. program:: stratrun {name}\n", *told])


def _spelling(action: Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None and action.metavar is None:
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        return f"{value} ..." if action.nargs in ("*", "+") else value
    more = " ..." if action.nargs in ("*", "+") else ""
    return ", ".join(one if action.nargs == 0 else f"{one} {value}{more}" for one in action.option_strings)


def _about(action: Action) -> str:
    # argparse fills in %(default)s and the like.
    text = (action.help or "") % {**vars(action), "prog": "stratrun"}
    return rst.plain(text) or rst.plain(action.dest)


def _ends() -> str:
    return "How it ends is told by its :ref:`exit code <exit-codes>`."
