"""``stratrun config schema``: JSON Schema of a config, or of a class, so that editors complete and check."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from stratrun.cli.list import KINDS
from stratrun.errors import ConfigError, nearest


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Without KIND it is that of a whole config, with all that is registered. Editors with a YAML\n"
        "language server follow this line at the top of a config:\n"
        "  # yaml-language-server: $schema=schema.json"
    )
    parser.add_argument(
        "kind", metavar="KIND", nargs="?", help="such as hooks, optimizers; see stratrun list"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of that kind")
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE_OR_FILE",
        action="append",
        default=[],
        help="import this first: it registers what is yours; may be given several times",
    )
    parser.add_argument("--out", metavar="FILE", help="where to write it, in place of the output")


def run(given: Namespace) -> int:
    if given.kind is not None and given.kind not in KINDS:
        raise ConfigError(f"there is no kind {given.kind!r}; {nearest(given.kind, KINDS)}")
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
