"""YAML with the scalars of YAML 1.2, read without ever calling a constructor."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.emitter import Emitter
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.representer import SafeRepresenter
from yaml.resolver import BaseResolver, Resolver
from yaml.scanner import Scanner
from yaml.serializer import Serializer

from stratrun.config.placed import PlacedDict
from stratrun.errors import ConfigError
from stratrun.problems import part

MAX_DEPTH = 60
# Aliases are expanded, so a few lines can stand for billions of values.
MAX_NODES = 200_000

_PREFIX = "tag:yaml.org,2002:"
_BOOL, _INT, _FLOAT, _NULL, _STR, _MAP, _SEQ, _MERGE = (
    _PREFIX + name for name in ("bool", "int", "float", "null", "str", "map", "seq", "merge")
)
_SCALARS = {
    _BOOL: (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    _INT: (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    _FLOAT: (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    _NULL: (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _MERGE: (r"<<", "<"),
}


class Scalars(BaseResolver):
    """Which plain scalars are not text: ``1e-3`` is a number; ``yes``, ``1:30`` and dates are text."""


class _Nodes(Reader, Scanner, Parser, Composer, Scalars):
    """Text to nodes; the constructor, the part of PyYAML that makes objects of tags, is left out."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Scalars.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=self.get_mark()
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Cautious(Resolver):
    """Quotes text that a reader of YAML 1.1 or of YAML 1.2 would take for something else."""


class _Dumper(SafeRepresenter, Emitter, Serializer, _Cautious):
    """Data to text: mappings on lines of their own, flat lists on one, no aliases."""

    def __init__(self, stream: Any, width: int) -> None:
        Emitter.__init__(self, stream, width=width, allow_unicode=True)
        Serializer.__init__(self)
        _Cautious.__init__(self)
        SafeRepresenter.__init__(self, sort_keys=False)

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def list_node(self, data: list[Any]) -> yaml.Node:
        flat = not any(isinstance(item, dict) for item in data)
        return self.represent_sequence(_SEQ, data, flow_style=flat)

    def dict_node(self, data: dict[Any, Any]) -> yaml.Node:
        return self.represent_mapping(_MAP, data, flow_style=False)

    def str_node(self, data: str) -> yaml.Node:
        return self.represent_scalar(_STR, data, style="|" if "\n" in data else None)


_Dumper.add_representer(list, _Dumper.list_node)
_Dumper.add_representer(dict, _Dumper.dict_node)
_Dumper.add_representer(str, _Dumper.str_node)

for _tag, (_pattern, _first) in _SCALARS.items():
    # Whole numbers come before other numbers, whose pattern they fit as well.
    for _resolver in (Scalars, _Cautious):
        _resolver.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def read(text: str, name: str) -> Any:
    """The data of one YAML document, its mappings as PlacedDicts with ``name:line``.

    Raises:
        ConfigError: it is no YAML, a key comes twice, a tag asks for more than plain data, or
            its aliases expand without bound.
    """
    return _Reading(lambda line: f"{name}:{line}").data(text)


def read_value(text: str, place: str) -> Any:
    """The data of one value outside a file; every key in it has the same place."""
    return _Reading(lambda line: place).data(text, comments=False)


def write_value(value: Any) -> str:
    """A plain scalar, or a list without mappings, on one line."""
    flat = isinstance(value, dict | list)
    text = write(value if flat else [value], width=1 << 30).strip()
    return text if flat else text[1:-1]


def write(data: Any, *, width: int = 100) -> str:
    """Plain data as YAML that `read` gives back unchanged."""
    stream = StringIO()
    dumper = _Dumper(stream, width)
    dumper.open()
    dumper.represent(data)
    dumper.close()
    return stream.getvalue()


class _Reading:
    """One pass over the nodes of a document."""

    def __init__(self, place_of: Callable[[int], str]) -> None:
        self._place_of = place_of
        self._count = 0
        self._open: set[int] = set()

    def data(self, text: str, *, comments: bool = True) -> Any:
        try:
            node = _Nodes(text).get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place_of(mark.line + 1 if mark else 1)
            reason = error.problem or error.context or "cannot be read"
            if reason.startswith("but "):
                reason = f"{error.context}, {reason}"
            raise ConfigError(f"{place}: {reason}{_mend(reason)}") from error
        except (yaml.YAMLError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{self._place_of(1)}: cannot be read as YAML: {reason}") from error
        # In a file a comment is plain to see; on a command line it would silently cut the value.
        if not comments and _is_cut(text, node):
            raise ConfigError(f"{self._place_of(1)}: '#' starts a comment; put the value in quotes")
        return None if node is None else self._value(node)

    def _value(self, node: yaml.Node) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise self._error(node, f"more than {MAX_NODES} values, aliases expanded")
        if id(node) in self._open:
            raise self._error(node, "an alias refers to the very value that it is part of")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
                return self._mapping(node)
            if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
                return [self._value(item) for item in node.value]
            if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN:
                return self._scalar(node)
        finally:
            self._open.discard(id(node))
        tag = node.tag.replace(_PREFIX, "!!")
        raise self._error(node, f"the tag {tag!r} is not plain data; a config names classes with 'type'")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return _PLAIN[node.tag](node.value)
        except (KeyError, ValueError) as error:
            kind = node.tag.removeprefix(_PREFIX)
            raise self._error(node, f"{_short(node.value)} cannot be read as {kind}") from error

    def _mapping(self, node: yaml.MappingNode) -> PlacedDict:
        made = PlacedDict()
        merged: list[PlacedDict] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += self._merged(value_node)
                continue
            key = self._key(key_node)
            place = self._place_of(key_node.start_mark.line + 1)
            with part():
                if key in made:
                    raise ConfigError(
                        f"{place}: {key!r} is there already ({made.places[key]}); keep one of them"
                    )
                made[key] = self._value(value_node)
                made.places[key] = place
        for one in merged:
            for key in [key for key in one if key not in made]:
                made[key] = one[key]
                made.places[key] = one.places[key]
        return made

    def _merged(self, node: yaml.Node) -> list[PlacedDict]:
        value = self._value(node)
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(one, PlacedDict) for one in found):
            raise self._error(node, "'<<' takes a mapping or a list of mappings")
        return found

    def _key(self, node: yaml.Node) -> str | int:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN else None
        if isinstance(key, str) or type(key) is int:
            return key
        shown = _short(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
        raise self._error(node, f"a key must be text or a whole number, not {shown}; put it in quotes")

    def _error(self, node: yaml.Node, reason: str) -> ConfigError:
        return ConfigError(f"{self._place_of(node.start_mark.line + 1)}: {reason}")


def _whole(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _number(text: str) -> float:
    lower = text.lower()
    return float(lower.replace(".inf", "inf").replace(".nan", "nan"))


_PLAIN: dict[str, Callable[[str], Any]] = {
    _STR: str,
    _INT: _whole,
    _FLOAT: _number,
    _BOOL: lambda text: {"true": True, "false": False}[text.lower()],
    _NULL: lambda text: None,
}


def _is_cut(text: str, node: yaml.Node | None) -> bool:
    end = 0 if node is None else node.end_mark.index
    return text[end:].lstrip().startswith("#")


def _mend(reason: str) -> str:
    if "'\\t'" in reason:
        return "; indent with spaces, not tabs"
    if "mapping values are not allowed" in reason:
        return "; check the indentation, or put the value in quotes"
    if "cannot start any token" in reason:
        return "; put the value in quotes"
    return ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
