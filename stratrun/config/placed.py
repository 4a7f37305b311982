"""Plain data whose keys know where they were written."""

from collections.abc import Callable, Mapping
from typing import Any

from stratrun.errors import ConfigError

Path = tuple[str | int, ...]

DELETE = "_delete_"
BASE = "_base_"


class PlacedDict(dict[Any, Any]):
    """A dict with the place of each key: ``base.yaml:3`` or ``override 'a.b=1'``."""

    __slots__ = ("places",)

    places: dict[Any, str]

    def __new__(cls, *args: Any, **kwargs: Any) -> "PlacedDict":
        # Here rather than in __init__, which unpickling does not call.
        made = super().__new__(cls)
        made.places = {}
        return made

    def at(self, key: Any) -> str:
        """The place of a key as `` (file:line)``, to end a message; nothing when it is not known."""
        return f" ({self.places[key]})" if key in self.places else ""


def placed(value: Any, place_of: Callable[[Path], str | None], path: Path = ()) -> Any:
    """Copy nested data into PlacedDicts, asking `place_of` for the place of each key."""
    if isinstance(value, Mapping):
        made = PlacedDict()
        for key, item in value.items():
            inner = (*path, key)
            made[key] = placed(item, place_of, inner)
            # Data that was read from another file knows better.
            if place := getattr(value, "places", {}).get(key) or place_of(inner):
                made.places[key] = place
        return made
    if isinstance(value, list):
        return [placed(item, place_of, (*path, i)) for i, item in enumerate(value)]
    if type(value) is tuple:
        return tuple(placed(item, place_of, (*path, i)) for i, item in enumerate(value))
    return value


def merge(base: PlacedDict, over: PlacedDict) -> PlacedDict:
    """The one merge rule: dicts merge key by key, all else replaces.

    A dict with ``_delete_: true`` replaces what it would merge with.
    """
    result = PlacedDict()
    if not _deletes(over):
        result.update(base)
        result.places.update(base.places)
    for key, value in over.items():
        if key == DELETE:
            continue
        old = result.get(key)
        if isinstance(old, PlacedDict) and isinstance(value, PlacedDict):
            result[key] = merge(old, value)
        else:
            result[key] = without_markers(value)
        result.places.pop(key, None)
        if key in over.places:
            result.places[key] = over.places[key]
    return result


def without_markers(value: Any) -> Any:
    """The value with every `_delete_` acted on where there is nothing left to merge with."""
    if isinstance(value, PlacedDict):
        return merge(PlacedDict(), value)
    if isinstance(value, list):
        return [without_markers(item) for item in value]
    if type(value) is tuple:
        return tuple(without_markers(item) for item in value)
    return value


def _deletes(over: PlacedDict) -> bool:
    marker = over.get(DELETE, False)
    if not isinstance(marker, bool):
        raise ConfigError(f"{DELETE} must be true or false, got {marker!r}{over.at(DELETE)}")
    return marker
