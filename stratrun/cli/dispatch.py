"""From the words of a command to the module that does it."""

import os
import select
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from stratrun.cli.arguments import Parser, check_config, why_unknown
from stratrun.cli.commands import COMMANDS, group_of, listed, named_in
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
    given = _understood(name, parser_of(name, module), rest)
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


def parser_of(name: str, module: ModuleType) -> Parser:
    """The parser of a command, whose ``--help`` ends with examples."""
    command = COMMANDS[name]
    sentence = f"{command.about[0].upper()}{command.about[1:]}."
    parser = Parser(
        prog=f"stratrun {name}",
        description=sentence,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    lines = "\n".join(f"  stratrun {name} {example}".rstrip() for example in command.examples)
    parser.epilog = "\n\n".join(filter(None, (parser.epilog, f"examples:\n{lines}")))
    return parser


def _understood(name: str, parser: ArgumentParser, words: list[str]) -> Namespace:
    command = COMMANDS[name]
    rest: list[str] = []
    if command.opens:
        words, rest = _split(parser, words)
    given, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise ConfigError(why_unknown(unknown[0], parser, settable=command.settable))
    if command.settable:
        check_config(given.config, given.settings, name)
    if command.opens:
        given.rest = rest
    return given


def _split(parser: ArgumentParser, words: list[str]) -> tuple[list[str], list[str]]:
    """The options of a command, and from the first other word on what they are for."""
    place = 0
    # `-m` names a module to start, as for python and torchrun.
    while place < len(words) and words[place].startswith("-") and words[place] != "-m":
        action = parser._option_string_actions.get(words[place])
        # `--key=value` is one word, a flag too.
        place += 2 if action is not None and action.nargs is None else 1
    return words[:place], words[place:]


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
