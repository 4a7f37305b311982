"""``stratrun list``: what a config may name."""

import json
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from math import inf
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from stratrun.cli.arguments import add_import_argument
from stratrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from stratrun.registry.offers import Offer

KINDS = (
    *("accelerators", "collates", "datasets", "hooks", "launchers", "loggers", "loops", "metrics", "models"),
    *("optimizers", "param_schedulers", "precisions", "runners", "samplers", "storages", "strategies"),
    "transforms",
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "A name is written as 'type' in a config. Without KIND it lists kinds; with NAME, what that takes.\n"
        f"kinds: {', '.join(KINDS[:9])},\n  {', '.join(KINDS[9:])}"
    )
    add_kind_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def add_kind_arguments(parser: ArgumentParser) -> None:
    """What every command takes that is about entries of registries: `kind`, `name`, `imports`."""
    parser.add_argument("kind", metavar="KIND", nargs="?", help="such as hooks, strategies, optimizers")
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of that kind")
    add_import_argument(parser)


def check_kind(kind: str | None) -> None:
    """
    Raises:
        ConfigError: there is no such kind; names the nearest.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}; {nearest(kind, KINDS)}")


def run(given: Namespace) -> int:
    check_kind(given.kind)
    # Only now: it imports torch, which takes seconds.
    from stratrun.cli.imports import import_named

    for name in given.imports:
        import_named(name)
    if given.kind is None:
        rows = [(kind, len(_offers(kind))) for kind in KINDS]
        print(json.dumps(dict(rows)) if given.json else "\n".join(f"{kind:18}{n:5}" for kind, n in rows))
        return 0
    if given.name is not None:
        offer = _named(given.kind, given.name)
        print(json.dumps(_fields(offer) | {"arguments": _arguments(offer)}) if given.json else _whole(offer))
        return 0
    offers = _offers(given.kind)
    if given.json:
        print(json.dumps([_fields(offer) for offer in offers], indent=1))
    elif offers:
        print(_table(offers))
    else:
        print(f"no {given.kind} are known; --import a module that registers yours")
    return 0


def _offers(kind: str) -> "list[Offer]":
    from stratrun import registry
    from stratrun.registry.offers import offers_of

    return offers_of(getattr(registry, kind.upper()))


def _named(kind: str, name: str) -> "Offer":
    offers = _offers(kind)
    for offer in offers:
        if name in offer.names:
            return offer
    names = [one for offer in offers for one in offer.names]
    raise ConfigError(f"no {kind} entry is called {name!r}; {nearest(name, names)}")


def _fields(offer: "Offer") -> dict[str, Any]:
    return {"names": offer.names, "provider": offer.provider, "about": offer.about}


def _arguments(offer: "Offer") -> list[dict[str, str]]:
    from stratrun.registry.offers import described

    rows = [] if offer.entry is None else described(offer.entry)
    return [dict(zip(("name", "type", "default"), row, strict=True)) for row in rows]


def _table(offers: list["Offer"]) -> str:
    titles = [", ".join(offer.names) for offer in offers]
    width = min(34, max(map(len, titles)))
    home = max(len(offer.provider) for offer in offers)
    # Whole sentences for a file or a search; as much as one line holds for a reader.
    room = get_terminal_size().columns if sys.stdout.isatty() else inf
    lines = []
    for title, offer in zip(titles, offers, strict=True):
        line = f"{title:{width}}  {offer.provider:{home}}  {offer.about}".rstrip()
        lines.append(line if len(line) <= room else f"{line[: int(room) - 3]}...")
    return "\n".join(lines)


def _whole(offer: "Offer") -> str:
    import inspect

    text = inspect.getdoc(offer.entry) or offer.about if offer.entry is not None else offer.about
    lines = [f"{', '.join(offer.names)}  ({offer.provider})", "", textwrap.indent(text, "  "), ""]
    rows = _arguments(offer)
    if rows:
        width = max(len(row["name"]) for row in rows)
        lines.append("arguments:")
        for row in rows:
            kind = f": {row['type']}" if row["type"] else ""
            default = f" = {row['default']}" if row["default"] else ""
            lines.append(f"  {row['name']:{width}}{kind}{default}")
    return "\n".join(lines).rstrip()
