"""Finding predictions and targets in what a model returned and in the batch it was given."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from stratrun.errors import MetricError, nearest

PREDS = ("preds", "pred", "predictions", "logits", "scores")
TARGET = ("target", "targets", "label", "labels", "y")
MISSING = object()

Key = str | int
Getter = Callable[[Any, Any], Any]
"""Takes one argument of a metric out of (outputs, batch)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the `update` of a metric wants: predictions and targets by position, the rest by name."""

    placed: tuple[str, ...] = ("preds", "target")
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """What the user called the predictions and the targets, where that was needed."""

    preds: Key | None = None
    target: Key | None = None


@dataclass(frozen=True, slots=True)
class Picked:
    """The way to a metric's arguments, for batches that are built like the one it was found with."""

    placed: tuple[Getter, ...]
    named: tuple[tuple[str, Getter], ...]

    def take(self, outputs: Any, batch: Any) -> tuple[list[Any], dict[str, Any]]:
        named = {name: detached(get(outputs, batch)) for name, get in self.named} if self.named else {}
        return [detached(get(outputs, batch)) for get in self.placed], named


def detached(value: Any) -> Any:
    # A state that kept it would keep the graph of every batch.
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def wanted_by(update: Callable[..., Any]) -> Wanted:
    """Read a signature: the first parameter is for predictions, the second for targets."""
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return Wanted()
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    placed = [p.name for p in by_place[:1]]
    placed += [p.name for p in by_place[1:2] if p.default is p.empty or p.name in TARGET]
    named = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in placed
    ]
    return Wanted(tuple(placed), tuple(named))


def pick(wanted: Wanted, outputs: Any, batch: Any, names: Names, who: str) -> Picked:
    """Find each wanted argument.

    Args:
        who: The metric, for messages.

    Raises:
        MetricError: one is not there; shows what is, and how to name it.
    """
    placed = []
    for place, parameter in enumerate(wanted.placed):
        role, given = ("target", names.target) if place else ("preds", names.preds)
        usual = (parameter, *(TARGET if place else PREDS))
        getter = _named(usual if given is None else (given,), outputs, batch)
        if getter is None and given is None:
            getter = _target_of(outputs, batch) if place else _preds_of(outputs)
        if getter is None:
            raise MetricError(_not_found(who, role, given, outputs, batch))
        placed.append(getter)
    named = []
    for parameter in wanted.named:
        getter = _named((parameter,), outputs, batch)
        if getter is None:
            raise MetricError(_not_found(who, parameter, parameter, outputs, batch))
        named.append((parameter, getter))
    return Picked(tuple(placed), tuple(named))


def target_of(outputs: Any, batch: Any) -> Any:
    """What metrics take for the targets, where they have a usual name or place; None where not."""
    getter = _named(TARGET, outputs, batch) or _target_of(outputs, batch)
    return None if getter is None else getter(outputs, batch)


def look_up(value: Any, key: Key) -> Any:
    """`value[key]` or `value.key`, whichever fits what `value` is; MISSING when it has neither."""
    if isinstance(value, Mapping):
        return value.get(key, MISSING)
    if isinstance(key, int):
        fits = isinstance(value, tuple | list) and -len(value) <= key < len(value)
        return value[key] if fits else MISSING
    # The methods of a tensor or a list are not data.
    plain = isinstance(value, Tensor | str | list) or type(value) is tuple
    return MISSING if plain else getattr(value, key, MISSING)


def outline(value: Any, depth: int = 2) -> str:
    """The structure of a batch in a line: keys, types and shapes, no values."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        parts = (
            [f"{key!r}: {outline(value[key], depth - 1)}" for key in list(value)[:8]] if depth else ["..."]
        )
        return f"{{{_joined(parts, len(value))}}}"
    if isinstance(value, tuple | list):
        parts = [outline(part, depth - 1) for part in value[:3]] if depth else ["..."]
        begin, end = "()" if isinstance(value, tuple) else "[]"
        return f"{begin}{_joined(parts, len(value))}{end}"
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value)]
        parts = (
            [f"{name}={outline(getattr(value, name), depth - 1)}" for name in names[:8]] if depth else ["..."]
        )
        return f"{type(value).__name__}({_joined(parts, len(names))})"
    return type(value).__name__


def _joined(parts: list[str], total: int) -> str:
    left = f", ... {total - len(parts)} more" if parts != ["..."] and total > len(parts) else ""
    return ", ".join(parts) + left


def _named(keys: Iterable[Key], outputs: Any, batch: Any) -> Getter | None:
    """The way to the first of the keys that there is, in the outputs rather than in the batch."""
    keys = tuple(keys)
    for side, value in enumerate((outputs, batch)):
        for key in keys:
            if look_up(value, key) is not MISSING:
                return _getter(side, value, key)
    return None


def _getter(side: int, value: Any, key: Any) -> Getter:
    if isinstance(value, Mapping) or isinstance(key, int):
        return (lambda outputs, batch: batch[key]) if side else (lambda outputs, batch: outputs[key])
    return (
        (lambda outputs, batch: getattr(batch, key))
        if side
        else (lambda outputs, batch: getattr(outputs, key))
    )


def _preds_of(outputs: Any) -> Getter | None:
    if _is_pair(outputs):
        return lambda outputs, batch: outputs[0]
    # A list is one prediction for each sample: boxes, or texts.
    return (lambda outputs, batch: outputs) if isinstance(outputs, Tensor | list) else None


def _target_of(outputs: Any, batch: Any) -> Getter | None:
    if _is_pair(outputs):
        return lambda outputs, batch: outputs[1]
    return (lambda outputs, batch: batch[1]) if _is_pair(batch) else None


def _is_pair(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return isinstance(value, tuple) or not isinstance(value[0], Mapping | str)


def _not_found(who: str, role: str, given: Key | None, outputs: Any, batch: Any) -> str:
    seen = f"the model returned {outline(outputs)} for a batch {outline(batch)}"
    if given is None:
        return (
            f"{who}: no {role} found; {seen}. Name what to take: Evaluator(metric, {role}='key'), or an "
            f"index for a sequence; in a config dict(type=..., {role}='key')"
        )
    known = [key for value in (outputs, batch) if isinstance(value, Mapping) for key in value]
    hint = f"; {nearest(given, map(str, known))}" if isinstance(given, str) and known else ""
    said = f"needs {role!r}" if given == role else f"{role}={given!r}"
    return f"{who}: {said}, which is neither in the outputs nor in the batch{hint}; {seen}"
