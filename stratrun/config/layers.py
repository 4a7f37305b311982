"""What each file and each override says by itself, before all of it is one config."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stratrun.config.loader import Files
from stratrun.config.overrides import nested
from stratrun.config.placed import DELETE, PlacedDict


@dataclass(frozen=True, slots=True)
class Word:
    """What one place says of a value."""

    place: str
    value: Any
    whole: str = ""
    """The dotted name of what it sets, where that is a whole that the value is, or was, a part of."""
    drops: bool = False
    """Whether nothing is left of the value after it."""


def layers_of(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), allow: Iterable[str] = ()
) -> list[PlacedDict]:
    """The data of every file that a config inherits, its own, and that of each override, later ones last.

    Raises:
        ConfigError: as `Config.load` does.
    """
    files = Files(tuple(allow))
    files.load(os.path.expanduser(os.fspath(path)), ())
    return [*files.read, *(nested(text, tuple(allow)) for text in overrides)]


def words_on(layers: Iterable[PlacedDict], key: str) -> list[Word]:
    """What was said of the value of a dotted name, in the order in which it counted; the last has won."""
    said = (_word(layer, key.split(".")) for layer in layers)
    return [word for word in said if word is not None]


def _word(node: Any, names: list[str]) -> Word | None:
    place, dropped = "", False
    for depth, name in enumerate(names):
        whole = ".".join(names[:depth])
        if isinstance(node, PlacedDict):
            dropped = dropped or bool(node.get(DELETE, False))
            found = next((key for key in node if str(key) == name), None)
            if found is None:
                return Word(node.places.get(DELETE, place), None, whole, drops=True) if dropped else None
            place, node = node.places.get(found, place), node[found]
        elif isinstance(node, list | tuple) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return Word(place, node, whole, drops=True)
    return Word(place, node)
