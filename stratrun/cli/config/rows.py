"""A config as rows of dotted names, and as YAML with the source of each value beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.config import Config
from stratrun.config.formats import yaml
from stratrun.config.plain import plain

_WIDEST = 60


@dataclass(frozen=True, slots=True)
class Row:
    """A value in which there is no further mapping."""

    key: str
    text: str
    """As YAML."""
    place: str


def rows_of(config: Config) -> dict[str, Row]:
    """Every value by its dotted name. The items of a list that holds mappings have names too."""
    return {row.key: row for row in _rows(config, "", "")}


def with_sources(config: Config) -> str:
    """YAML that `Config.load` reads back, with the place of each value in a comment behind it."""
    lines = list(_lines(config, "", ""))
    width = min(max((len(text) for text, place in lines if place), default=0), _WIDEST)
    return "\n".join(f"{text:{width}}  # {place}" if place else text for text, place in lines)


def _rows(value: Any, name: str, place: str) -> Iterator[Row]:
    if isinstance(value, Mapping) and value:
        places = getattr(value, "places", {})
        for key, item in value.items():
            yield from _rows(item, f"{name}.{key}" if name else str(key), places.get(key, place))
    elif _is_nested(value):
        for number, item in enumerate(value):
            yield from _rows(item, f"{name}.{number}", place)
    elif name:
        yield Row(name, yaml.write_value(plain(value)), place)


def _lines(value: Any, indent: str, place: str) -> Iterator[tuple[str, str]]:
    places = getattr(value, "places", {})
    for key, item in value.items():
        at, name = places.get(key, place), yaml.write_value(key if type(key) is int else str(key))
        if isinstance(item, Mapping) and item:
            yield f"{indent}{name}:", ""
            yield from _lines(item, f"{indent}  ", at)
        elif _is_nested(item):
            yield f"{indent}{name}:", ""
            yield from _items(item, indent, at)
        else:
            yield f"{indent}{name}: {yaml.write_value(plain(item))}", _in_a_line(at)


def _items(items: Any, indent: str, place: str) -> Iterator[tuple[str, str]]:
    for item in items:
        if isinstance(item, Mapping) and item:
            first = True
            for text, at in _lines(item, f"{indent}  ", place):
                yield f"{indent}- {text[len(indent) + 2 :]}" if first else text, at
                first = False
        else:
            yield f"{indent}- {yaml.write_value(plain(item))}", _in_a_line(place)


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _in_a_line(place: str) -> str:
    return " ".join(place.split())
