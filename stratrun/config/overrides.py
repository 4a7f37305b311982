"""``optimizer.lr=1e-3`` from a command line."""

from collections.abc import Iterable
from typing import Any

from stratrun.config.formats import yaml
from stratrun.config.placed import BASE, DELETE, PlacedDict, merge, without_markers
from stratrun.config.redaction import HIDDEN, redacted
from stratrun.config.vetting import refuse_inner_bases, vet
from stratrun.errors import ConfigError
from stratrun.problems import part


def apply(tree: PlacedDict, overrides: Iterable[str], allow: tuple[str, ...]) -> PlacedDict:
    """The tree with every override set, later ones last. A value is read as YAML.

    Raises:
        ConfigError: an override has no ``=``, or its path leads through what is no mapping.
    """
    for text in overrides:
        with part():
            tree = _applied(tree, text, allow)
    return tree


def nested(text: str, allow: tuple[str, ...]) -> PlacedDict:
    """What an override says, as data of its own."""
    keys, value, place = _read(text, allow)
    return _nested(keys, value, place)


def _applied(tree: PlacedDict, text: str, allow: tuple[str, ...]) -> PlacedDict:
    keys, value, place = _read(text, allow)
    made: PlacedDict = _put(tree, keys, value, place, ())
    return made


def _read(text: str, allow: tuple[str, ...]) -> tuple[list[str], Any, str]:
    keys, raw = _split(text)
    # Read twice: only the value itself tells whether its text may be shown as its place.
    place = _place(keys, raw, yaml.read_value(raw, f"override {'.'.join(keys)!r}"))
    value = yaml.read_value(raw, place)
    vetted = _nested(keys[-1:], value, place)
    vet(vetted, allow)
    value = vetted[keys[-1]]
    refuse_inner_bases(value, top=False)
    return keys, value, place


def _split(text: str) -> tuple[list[str], str]:
    path, equals, raw = text.partition("=")
    shown = path.strip()
    if not equals:
        raise ConfigError(f"override {shown!r} has no value; write key=value, such as optimizer.lr=1e-3")
    name = shown.lstrip("+~-")
    if name != shown:
        raise ConfigError(f"override {shown!r}: write it without {shown[: -len(name)]!r}, as {name}=value")
    keys = shown.split(".")
    if not all(keys):
        raise ConfigError(f"override {shown!r}: a key is empty; write a.b=value")
    if BASE in keys or DELETE in keys:
        raise ConfigError(
            f"override {shown!r}: {BASE} belongs in a file, and {DELETE} inside the value, "
            f"as in optimizer={{{DELETE}: true, type: SGD}}"
        )
    return keys, raw


def _place(keys: list[str], raw: str, value: Any) -> str:
    # Places end up in messages and logs.
    whole = _nested(keys, value, "")
    shown = raw.strip() if redacted(whole) == whole else HIDDEN
    return f"override '{'.'.join(keys)}={shown if len(shown) <= 60 else f'{shown[:57]}...'}'"


def _nested(keys: list[str], value: Any, place: str) -> PlacedDict:
    made = PlacedDict({keys[0]: value if len(keys) == 1 else _nested(keys[1:], value, place)})
    made.places[keys[0]] = place
    return made


def _put(node: Any, keys: list[str], value: Any, place: str, done: tuple[str, ...]) -> Any:
    """A copy of the node with the value set; nothing that other files share is changed."""
    if isinstance(node, PlacedDict):
        return _put_in_dict(node, keys, value, place, done)
    if isinstance(node, list | tuple):
        index = _index(node, keys[0], place, done)
        items: list[Any] = list(node)
        items[index] = _inner(items[index], keys, value, place, done)
        return items if isinstance(node, list) else tuple(items)
    raise ConfigError(f"{place}: {'.'.join(done)} is {_kind(node)}, not a mapping{_mend(node, keys, done)}")


def _put_in_dict(
    node: PlacedDict, keys: list[str], value: Any, place: str, done: tuple[str, ...]
) -> PlacedDict:
    # On a command line the key 5 looks like the key "5".
    key = next((known for known in node if str(known) == keys[0]), keys[0])
    made = PlacedDict(node)
    made.places.update(node.places)
    missing = PlacedDict() if len(keys) > 1 else None
    made[key] = _inner(node.get(key, missing), keys, value, place, done)
    made.places[key] = place
    return made


def _inner(old: Any, keys: list[str], value: Any, place: str, done: tuple[str, ...]) -> Any:
    if len(keys) > 1:
        return _put(old, keys[1:], value, place, (*done, keys[0]))
    if isinstance(old, PlacedDict) and isinstance(value, PlacedDict):
        return merge(old, value)
    return without_markers(value)


def _index(node: list[Any] | tuple[Any, ...], key: str, place: str, done: tuple[str, ...]) -> int:
    name = ".".join(done)
    try:
        index = int(key)
    except ValueError as error:
        raise ConfigError(
            f"{place}: {name} is a list; name an item of it by its number, as in {name}.0"
        ) from error
    if not -len(node) <= index < len(node):
        raise ConfigError(f"{place}: {name} has {len(node)} items, counted from 0; there is no {index}")
    return index


def _kind(node: Any) -> str:
    return "null" if node is None else f"a {type(node).__name__}"


def _mend(node: Any, keys: list[str], done: tuple[str, ...]) -> str:
    name = ".".join(done)
    # What looks like a name, as `ddp` does; other text may be long or secret.
    named = f"type: {node}, " if isinstance(node, str) and node.replace("-", "").isidentifier() else ""
    return f"; set it whole, as in {name}={{{named}{'.'.join(keys)}: ...}}"
