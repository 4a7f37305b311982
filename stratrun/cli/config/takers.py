"""What takes the values of a place in a config, and what it says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.errors import StratrunError
from stratrun.registry.docs import documented
from stratrun.registry.offers import about, described
from stratrun.runner.slots import LOADER_KEYS, Slot, holders, slot_of, value_at, within


@dataclass(frozen=True, slots=True)
class Argument:
    """One thing that a place takes."""

    name: str
    kind: str
    """Its annotation."""
    default: str
    """As Python writes it; empty where it must be given."""
    about: str


@dataclass(frozen=True, slots=True)
class Taker:
    """A class that a place of a config is for."""

    place: str
    """The dotted name of the place; empty for the config as a whole."""
    name: str
    about: str
    arguments: dict[str, Argument]


def taker_of(config: Mapping[str, Any], key: str) -> tuple[Taker | None, str]:
    """What takes the value of a dotted name, and the rest of the name that it knows it by."""
    for place, rest in holders(key):
        taker = taker_at(config, place)
        if taker is not None:
            return taker, rest
    return None, key


def taker_at(config: Mapping[str, Any], place: str) -> Taker | None:
    """The class that a place is for; None for one that is a plain value, or whose class is not to be had."""
    slot = slot_of(place)
    try:
        node = value_at(config, place)
    except KeyError:
        node = None
    kind = node.get("type") if isinstance(node, Mapping) else node
    if not place:
        kind = config.get("runner_type")
    if place.endswith("_dataloader"):
        return _loader(place)
    if slot is not None and slot.settings is not None:
        return _of(place, slot.settings, slot)
    if slot is None and not (isinstance(node, Mapping) and "type" in node):
        return None
    registry = slot.registry if slot is not None else within(_argument(place))
    assert registry is not None
    if not isinstance(kind, str) and slot is not None:
        kind = slot.default
    # A dotted path would import what it names, and explaining runs nothing of the config's.
    if not isinstance(kind, str) or "." in kind:
        return None
    try:
        entry = registry.get(kind)
    except StratrunError:
        return None
    return _of(place, entry, slot or Slot())


def _argument(place: str) -> str:
    return next((name for name in reversed(place.split(".")) if not name.isdecimal()), "")


def _of(place: str, entry: Callable[..., Any], slot: Slot) -> Taker:
    told = documented(entry)
    arguments = {
        name: Argument(name, kind, default, told.get(name, ""))
        for name, kind, default in described(entry)
        if name not in slot.given and not name.startswith("*")
    }
    arguments |= {name: Argument(name, "", "None", text) for name, text in slot.beside.items()}
    return Taker(place, f"{entry.__module__}.{entry.__name__}", about(entry), arguments)


def _loader(place: str) -> Taker:
    # Only now, as torch is heavy and not every key is of a loader.
    from torch.utils.data import DataLoader

    found = _of(place, DataLoader, Slot(beside=LOADER_KEYS))
    return Taker(
        place, "a loader", "Its options are torch's for a DataLoader, and three more.", found.arguments
    )
