"""``stratrun config diff``: in which values two configs differ."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from stratrun.cli.config.rows import Row, rows_of
from stratrun.config import Config

DIFFERENT = 1


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "A line that begins with - is of the first config alone, + of the second alone, ~ of both.\n"
        "The exit code is 0 if they say the same, 1 if they differ, and 2 if one cannot be read."
    )
    parser.add_argument("first", metavar="A", help="a config")
    parser.add_argument("second", metavar="B", help="the config to compare it with")
    parser.add_argument(
        "--allow",
        metavar="PREFIX",
        action="append",
        default=[],
        help="let the configs name classes below this dotted prefix",
    )


def run(given: Namespace) -> int:
    one = Config.load(given.first, allow=given.allow)
    other = Config.load(given.second, allow=given.allow)
    lines = list(differences(one, other))
    for line in lines:
        print(line)
    return DIFFERENT if lines else 0


def differences(one: Config, other: Config) -> Iterator[str]:
    """A line for each value that is not the same in both, in the order of the first config."""
    before, after = rows_of(one), rows_of(other)
    # Compared as they are, and shown without secrets.
    old, new = rows_of(one.redacted()), rows_of(other.redacted())
    for key in dict.fromkeys((*before, *after)):
        if key not in after:
            yield f"- {key}: {_shown(old.get(key))}"
        elif key not in before:
            yield f"+ {key}: {_shown(new.get(key))}"
        elif before[key].text != after[key].text:
            yield f"~ {key}: {_shown(old.get(key))} -> {_shown(new.get(key))}"


def _shown(row: Row | None) -> str:
    if row is None:
        return "***"
    return f"{row.text} ({row.place})" if row.place else row.text
