"""``stratrun config explain``: a value, who set it, what takes it, and what it is for."""

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from stratrun.cli.arguments import Arguments, add_config_arguments
from stratrun.cli.config.rows import rows_of
from stratrun.cli.job import settle
from stratrun.config.formats import yaml
from stratrun.config.plain import plain
from stratrun.config.redaction import redacted
from stratrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from stratrun.cli.config.takers import Taker
    from stratrun.config import Config
    from stratrun.config.layers import Word

_MISSING = object()
_FEW = 12


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Secrets are shown as ***."
    add_config_arguments(
        parser, key="a dotted name, such as optimizer.lr or custom_hooks.0; items of a list count from 0"
    )


def run(given: Namespace) -> int:
    if given.key is None or "=" in given.key:
        raise ConfigError("which value? write: stratrun config explain CONFIG KEY [key=value ...]")
    # Only now: what takes a value is asked of the class, and most are of torch.
    from stratrun.cli.config.takers import taker_at, taker_of
    from stratrun.cli.imports import import_named
    from stratrun.config.layers import layers_of, words_on

    config = settle(Arguments("train", given.config, tuple(given.settings), allow=tuple(given.allow)))
    for name in given.imports:
        import_named(name)
    words = words_on(layers_of(given.config, given.settings, given.allow), given.key)
    shown = config.redacted()
    taker, rest = taker_of(config, given.key)
    inner = taker_at(config, given.key)
    value = _value(shown, given.key)
    known = taker is not None and rest in taker.arguments
    if value is _MISSING and not known and inner is None:
        names = [*rows_of(config), *(_within(taker) if taker else ())]
        near = nearest(given.key, names)
        raise ConfigError(f"{given.config} has no {given.key!r}, and nothing takes it; {near}")
    lines = [
        _title(given.key, value, taker, rest),
        *_set_by(words, given.key, whole=isinstance(value, Mapping)),
        *_taken_by(taker, rest),
        *(() if known and taker is not None and taker.place else _one_of(given.key)),
        *(_options(inner, value) if inner is not None else ()),
    ]
    print("\n".join(lines))
    return 0


def _within(taker: "Taker") -> Iterator[str]:
    for name in taker.arguments:
        yield f"{taker.place}.{name}" if taker.place else name


def _value(config: "Config", key: str) -> Any:
    from stratrun.runner.slots import value_at

    try:
        return value_at(config, key)
    except KeyError:
        return _MISSING


def _title(key: str, value: Any, taker: "Taker | None", rest: str) -> str:
    if value is not _MISSING:
        return f"{key}: {_short(value)}"
    default = taker.arguments[rest].default if taker is not None and rest in taker.arguments else ""
    return f"{key} is not set" + (f", and is {default} by default" if default else "")


def _set_by(words: "Iterable[Word]", key: str, *, whole: bool) -> Iterator[str]:
    """What each place said of it, the one that counts first.

    Args:
        whole: Whether it is made of what all of them said.
    """
    for number, word in enumerate(reversed(list(words))):
        head = "set by" if number == 0 or whole else "before"
        what = "not there any more" if word.drops else _short(_hidden(key, word.value))
        part = f", as part of {word.whole}" if word.whole else ""
        yield f"  {head:9}{word.place or 'the command line'}: {what}{part}"


def _hidden(key: str, value: Any) -> Any:
    """A value without its secrets, which are told by the names around them."""
    names = key.split(".")
    for name in reversed(names):
        value = {name: value}
    value = redacted(value)
    for name in names:
        value = value[name]
    return value


def _taken_by(taker: "Taker | None", rest: str) -> Iterator[str]:
    from stratrun.runner import names

    if taker is None:
        return
    found = taker.arguments.get(rest)
    if found is None:
        return
    # Names that stand for several types say nothing to a reader.
    kind = "" if found.kind in ("", "Any") or hasattr(names, found.kind) else f" ({found.kind})"
    default = f", {found.default} by default" if found.default else ", which must be given"
    yield f"  {'taken by':9}{taker.name}: {rest}{kind}{default}"
    yield from _folded(found.about, "  ")


def _one_of(key: str) -> Iterator[str]:
    """What can be named there."""
    from stratrun.runner.slots import slot_of

    slot = slot_of(key)
    if slot is None or slot.registry is None or not key:
        return
    known = slot.registry.names()
    few = len(known) <= _FEW
    yield f"  {'one of':9}{', '.join(known) if few else f'those of: stratrun list {slot.registry.kind}'}"


def _options(taker: "Taker", value: Any) -> Iterator[str]:
    """What may stand below a key that a class is named by."""
    yield f"  is a     {taker.name}{f': {taker.about}' if taker.about else ''}"
    given = value if isinstance(value, Mapping) else {}
    for one in taker.arguments.values():
        now = _short(given[one.name]) if one.name in given else one.default or "must be given"
        yield f"    {one.name} = {now}" + ("" if one.name in given or not one.default else "  (default)")
        yield from _folded(one.about, "      ", lines=2)


def _folded(text: str, indent: str, lines: int = 12) -> list[str]:
    width = max(20, min(get_terminal_size((100, 24)).columns, 100))
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, max_lines=lines, placeholder=" ..."
    )


def _short(value: Any) -> str:
    text = _flow(plain(value))
    return text if len(text) <= 100 else f"{text[:97]}..."


def _flow(value: Any) -> str:
    """As YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return yaml.write_value(value)
