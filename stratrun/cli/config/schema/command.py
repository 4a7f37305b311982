"""``stratrun config schema``: JSON Schema of a config, or of a class, so that editors complete and check."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from stratrun.cli.list import add_kind_arguments, check_kind
from stratrun.errors import ConfigError


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Without KIND it is that of a whole config, with all that is registered. Editors with a YAML\n"
        "language server follow this line at the top of a config:\n"
        "  # yaml-language-server: $schema=schema.json"
    )
    add_kind_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="where to write it, in place of the output")


def run(given: Namespace) -> int:
    check_kind(given.kind)
    if given.kind is not None and given.name is None:
        raise ConfigError(f"which of the {given.kind}? write: stratrun config schema {given.kind} NAME")
    text = json.dumps(_schema(given), indent=1)
    if given.out is None:
        print(text)
        return 0
    try:
        Path(given.out).write_text(f"{text}\n")
    except OSError as error:
        raise ConfigError(f"--out {given.out} cannot be written: {error}; choose another place") from error
    print(f"written: {given.out}\nin a config: # yaml-language-server: $schema={given.out}")
    return 0


def _schema(given: Namespace) -> dict[str, Any]:
    # Only now: it imports all that can be named, which takes seconds.
    from stratrun import registry
    from stratrun.cli.config.schema.build import of_class, of_config
    from stratrun.cli.imports import import_named

    for name in given.imports:
        import_named(name)
    if given.kind is None:
        return of_config()
    return of_class(getattr(registry, given.kind.upper()), given.name)
