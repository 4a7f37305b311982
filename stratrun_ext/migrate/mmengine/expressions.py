"""Values that stand in the text of a Python config, worked out without running it."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.config.placed import PlacedDict

_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_LONGEST = 10_000
_BITS = 1024
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")


class NoValueError(Exception):
    """What stands there is known only by running it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """In the place of a value that only running the config would give."""

    text: str


class Expressions:
    """Works out literals, `dict(...)`, names that were assigned before, and arithmetic of them.

    Args:
        names: What was assigned so far.
        base: What the inherited files have, for ``_base_.x`` and ``{{_base_.x}}``.
        place: Of a line.
    """

    def __init__(
        self, names: Mapping[str, Any], base: Mapping[str, Any], place: Callable[[int], str], text: str
    ) -> None:
        self._names, self._base, self._place, self._text = names, base, place, text
        self.used: set[str] = set()
        """Names whose values were asked for."""

    def value(self, node: ast.expr) -> Any:
        """The value, with `Unknown` for such parts of dicts and lists as cannot be known.

        Raises:
            NoValueError: it cannot be known as a whole.
        """
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, str | int | float | None) or not _is_modest(node.value):
                raise self._none(node)
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node)
        if isinstance(node, ast.List | ast.Tuple):
            items = self._items(node.elts)
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Set):
            return self._set(node)
        if isinstance(node, ast.Dict):
            return self._dict(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Attribute | ast.Subscript):
            return self._part(node)
        if isinstance(node, ast.BinOp | ast.UnaryOp | ast.JoinedStr):
            return self._worked_out(node)
        raise self._none(node)

    def part(self, node: ast.expr) -> Any:
        """As `value`, with `Unknown` in the place of what cannot be known."""
        try:
            return self.value(node)
        except NoValueError:
            return Unknown(ast.get_source_segment(self._text, node) or type(node).__name__)

    def _none(self, node: ast.expr) -> NoValueError:
        return NoValueError(ast.get_source_segment(self._text, node) or type(node).__name__)

    def _named(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            raise self._none(node)
        self.used.add(node.id)
        return self._names[node.id]

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for one in nodes:
            if isinstance(one, ast.Starred):
                items.extend(self._of(one.value, list | tuple))
            else:
                items.append(self.part(one))
            if len(items) > _LONGEST:
                raise self._none(one)
        return items

    def _set(self, node: ast.Set) -> Any:
        # ``{{_base_.x}}`` is, to Python, a set in a set.
        inner = node.elts[0]
        if len(node.elts) == 1 and isinstance(inner, ast.Set) and len(inner.elts) == 1:
            return self.value(inner.elts[0])
        raise self._none(node)

    def _dict(self, node: ast.Dict) -> PlacedDict:
        made = PlacedDict()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self._take_all(made, value)
                continue
            name = self.value(key)
            if not isinstance(name, str | int):
                raise self._none(key)
            made[name] = self.part(value)
            made.places[name] = self._place(key.lineno)
        return made

    def _call(self, node: ast.Call) -> PlacedDict:
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or "dict" in self._names:
            raise self._none(node)
        made = PlacedDict()
        for one in node.args:
            self._take_all(made, one)
        for keyword in node.keywords:
            if keyword.arg is None:
                self._take_all(made, keyword.value)
            else:
                made[keyword.arg] = self.part(keyword.value)
                made.places[keyword.arg] = self._place(keyword.value.lineno)
        return made

    def _take_all(self, made: PlacedDict, node: ast.expr) -> None:
        other = self._of(node, Mapping)
        made.update(other)
        made.places.update(getattr(other, "places", {}))

    def _of(self, node: ast.expr, kind: Any) -> Any:
        value = self.value(node)
        if not isinstance(value, kind):
            raise self._none(node)
        return value

    def _part(self, node: ast.Attribute | ast.Subscript) -> Any:
        if isinstance(node, ast.Attribute):
            whole = self._whole(node.value)
            if not isinstance(whole, Mapping) or node.attr not in whole:
                raise self._none(node)
            if whole is self._base:
                self.used.add(node.attr)
            return whole[node.attr]
        whole, key = self._whole(node.value), self.value(node.slice)
        try:
            return whole[key]
        except (KeyError, IndexError, TypeError) as error:
            raise self._none(node) from error

    def _whole(self, node: ast.expr) -> Any:
        return self._base if isinstance(node, ast.Name) and node.id == "_base_" else self.value(node)

    def _worked_out(self, node: ast.BinOp | ast.UnaryOp | ast.JoinedStr) -> Any:
        if isinstance(node, ast.JoinedStr):
            text = "".join(self._text_of(one) for one in node.values)
            if not _is_modest(text):
                raise self._none(node)
            return text
        if isinstance(node, ast.UnaryOp):
            return self._signed(node)
        left, right = self.value(node.left), self.value(node.right)
        known = type(node.op) in _OPERATIONS or (isinstance(node.op, ast.Pow) and _is_small(left, right))
        if not known or any(isinstance(one, Unknown) for one in (left, right)):
            raise self._none(node)
        if not _grows_little(node.op, left, right):
            raise self._none(node)
        try:
            found = left**right if isinstance(node.op, ast.Pow) else _OPERATIONS[type(node.op)](left, right)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise self._none(node) from error
        if not _is_modest(found):
            raise self._none(node)
        return found

    def _signed(self, node: ast.UnaryOp) -> Any:
        try:
            return _SIGNS[type(node.op)](self.value(node.operand))
        except (KeyError, TypeError) as error:
            raise self._none(node) from error

    def _text_of(self, node: ast.expr) -> str:
        plain = isinstance(node, ast.FormattedValue) and node.format_spec is None and node.conversion == -1
        value = self.value(node.value) if isinstance(node, ast.FormattedValue) and plain else self.value(node)
        if not isinstance(value, str | int | float):
            raise self._none(node)
        return str(value)


def _is_small(left: Any, right: Any) -> bool:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return numbers and abs(left) <= 1e6 and abs(right) <= 64


def _is_modest(value: Any) -> bool:
    """Whether it is no larger than what a config has, so that a few lines cannot make it grow on and on."""
    if isinstance(value, int):
        return value.bit_length() <= _BITS
    return _length(value) <= _LONGEST


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _grows_little(operation: ast.operator, left: Any, right: Any) -> bool:
    if isinstance(operation, ast.Mod) and isinstance(left, str):
        return not _WIDE.search(left)
    return not isinstance(operation, ast.Mult) or _fits(left, right)


def _fits(left: Any, right: Any) -> bool:
    """Whether a product is one of numbers, or a sequence repeated a few times."""
    length = _length(left) + _length(right)
    counts = [one for one in (left, right) if isinstance(one, int)]
    return not length or (bool(counts) and counts[0] * length <= _LONGEST)
