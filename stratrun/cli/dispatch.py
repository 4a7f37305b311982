"""From the words of a command to the module that does it."""

import os
import select
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from stratrun.cli.arguments import Parser, check_config, why_unknown
from stratrun.cli.commands import COMMANDS, Command, group_of, listed, named_in
from stratrun.errors import ConfigError, nearest


def command(argv: Sequence[str]) -> int | None:
    """Do the command that the first words name. Returns its exit code, None if they name none.

    Ends the process itself for ``--help``.

    Raises:
        ConfigError: the words behind it are not what it takes.
    """
    words = list(argv)
    found = named_in(words)
    if found is None:
        return _group(words)
    name, rest = found
    module = import_module(COMMANDS[name].module)
    parser = _parser(name, COMMANDS[name])
    module.add_arguments(parser)
    given = _understood(name, parser, rest)
    try:
        code = int(module.run(given))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        return 0  # whoever read the output has seen enough of it, as `head` does
    return code


def _is_unread() -> bool:
    """Whether nobody reads the output any more. If so, nothing tries to write what is left of it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _parser(name: str, about: Command) -> Parser:
    sentence = f"{about.about[0].upper()}{about.about[1:]}."
    return Parser(
        prog=f"stratrun {name}",
        description=sentence,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _understood(name: str, parser: ArgumentParser, words: list[str]) -> Namespace:
    given, unknown = parser.parse_known_intermixed_args(words)
    settable = COMMANDS[name].settable
    if unknown:
        raise ConfigError(why_unknown(unknown[0], parser, settable=settable))
    if settable:
        check_config(given.config, given.settings, name)
    return given


def _group(words: list[str]) -> int | None:
    """The overview of commands that share their first word, for who has named none of them."""
    group = group_of(words[0]) if words else {}
    if not group:
        return None
    first, rest = words[0], words[1:]
    if rest and rest[0] not in ("-h", "--help"):
        raise ConfigError(f"{first} has no command {rest[0]!r}; {nearest(rest[0], group)}")
    print(f"usage: stratrun {first} {'|'.join(group)} ...\n\n{listed(group)}")
    print(f"\nstratrun {first} {next(iter(group))} --help says what each takes.")
    return 0 if rest else 2
