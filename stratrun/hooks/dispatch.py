"""Which hook is called at which point, worked out when the hook is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from difflib import get_close_matches
from itertools import takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from stratrun.errors import ConfigError, nearest
from stratrun.hooks.base import FOREIGN_POINTS, POINTS, PRIORITIES, Hook

if TYPE_CHECKING:
    from stratrun.context import RunContext

Around = Callable[[Hook, str], AbstractContextManager[Any]]

_RESERVED = frozenset(name for name in dir(Hook) if not name.startswith("_"))


class _Handler(NamedTuple):
    """One method of one hook, and how it is called with the details of a point."""

    hook: Hook
    call: Callable[[dict[str, Any]], Any]


class HookList:
    """The hooks of a run in the order in which they are called.

    A point that no hook has a method for costs one look-up in a dictionary.
    """

    def __init__(self) -> None:
        self._hooks: list[tuple[int, Hook]] = []
        self._bare: dict[str, tuple[_Handler, ...]] = {}
        # What is called: the same, unless calls are watched.
        self._table = self._bare
        self._around: Around | None = None
        self._waiting: dict[str, str] = {}

    def __iter__(self) -> Iterator[Hook]:
        return (hook for _, hook in self._hooks)

    def register(self, hook: Hook, priority: int | str | None = None) -> None:
        """Add a hook behind those of its priority.

        Args:
            priority: Overrides the hook's own: 0 (first) to 100, or a name such as ``"HIGH"``.

        Raises:
            ConfigError: the priority is unknown, or a method asks for something its point does not give.
        """
        place = parse_priority(type(hook).priority if priority is None else priority)
        methods = dict(_methods_of(hook))
        calls = {point: _adapter(hook, point, method) for point, method in methods.items()}
        for point in calls:
            if point not in POINTS and _looks_like_a_point(point):
                self._waiting.setdefault(point, type(hook).__name__)
        self._hooks.append((place, hook))
        self._hooks.sort(key=lambda entry: entry[0])
        for point, call in calls.items():
            handlers = [*self._bare.get(point, ()), _Handler(hook, call)]
            order = {id(h): i for i, (_, h) in enumerate(self._hooks)}
            self._bare[point] = tuple(sorted(handlers, key=lambda handler: order[id(handler.hook)]))
        self.around = self._around

    @property
    def around(self) -> Around | None:
        """Gives a context to enter around each call of a hook at a point. None, where nobody watches."""
        return self._around

    @around.setter
    def around(self, around: Around | None) -> None:
        self._around = around
        if around is None:
            self._table = self._bare
            return
        self._table = {
            point: tuple(_Handler(hook, _watched(around, hook, point, call)) for hook, call in handlers)
            for point, handlers in self._bare.items()
        }

    def call(self, runner: RunContext, point: str, details: dict[str, Any]) -> None:
        """Call every hook that has a method named `point`."""
        handlers = self._table.get(point)
        if handlers is None:
            return
        details["runner"] = runner
        if point in self._waiting:
            del self._waiting[point]
        for hook, call in handlers:
            try:
                call(details)
            except Exception as error:
                error.add_note(f"in {type(hook).__name__}.{point}, step {runner.step}")
                raise

    def listens(self, point: str) -> bool:
        """Whether any hook has a method named `point`."""
        return point in self._table

    def never_called(self) -> list[str]:
        """Methods that look like points and were not called by any loop, each with what was meant."""
        told = []
        for point, hook in self._waiting.items():
            # Not closer: points that a loop invents are often spelt like ours.
            near = get_close_matches(point, POINTS, n=1, cutoff=0.85)
            meant = FOREIGN_POINTS.get(point) or (near[0] if near else None)
            if meant is not None:
                told.append(f"{hook}.{point} is a point that no loop calls; did you mean {meant!r}?")
        return told

    def describe(self) -> str:
        """The order of calls: each point that any hook has, in the order of a run, with its hooks."""
        points = [p for p in POINTS if p in self._table]
        points += sorted(
            p for p in self._table if p not in POINTS and p.startswith(("before_", "after_", "on_"))
        )
        priority = {id(hook): place for place, hook in self._hooks}
        lines = []
        for point in points:
            hooks = (f"{type(h.hook).__name__} ({priority[id(h.hook)]})" for h in self._table[point])
            lines.append(f"{point}: {', '.join(hooks)}")
        return "\n".join(lines)


def _watched(
    around: Around, hook: Hook, point: str, call: Callable[[dict[str, Any]], Any]
) -> Callable[[dict[str, Any]], Any]:
    def watched(details: dict[str, Any]) -> None:
        with around(hook, point):
            call(details)

    return watched


def parse_priority(priority: int | str) -> int:
    """A priority as a number from 0 (called first) to 100.

    Raises:
        ConfigError: it is neither such a number nor a name of one.
    """
    if isinstance(priority, str):
        if priority.upper() not in PRIORITIES:
            raise ConfigError(f"priority={priority!r} is unknown; {nearest(priority, PRIORITIES)}")
        return PRIORITIES[priority.upper()]
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 100:
        raise ConfigError(
            f"priority={priority!r} must be a whole number from 0 to 100, or a name such as 'HIGH'"
        )
    return priority


def _looks_like_a_point(name: str) -> bool:
    return name.startswith(("before_", "after_", "on_")) or bool(get_close_matches(name, POINTS, 1, 0.9))


def _methods_of(hook: Hook) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(hook):
        if name.startswith("_") or name in _RESERVED:
            continue
        # Looked up without running a property.
        found = inspect.getattr_static(hook, name)
        if inspect.isroutine(found) or (name in POINTS and callable(getattr(hook, name))):
            yield name, getattr(hook, name)


def _adapter(hook: Hook, point: str, method: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """A function of the details that passes the method what it names."""
    parameters = inspect.signature(method).parameters.values()
    owner = f"{type(hook).__name__}.{point}"
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if point in POINTS:
        for name in required:
            if name != "runner" and name not in POINTS[point]:
                given = ("runner", *POINTS[point])
                raise ConfigError(
                    f"{owner} asks for {name!r}, which the point does not give; {nearest(name, given)}"
                )
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    def call(details: dict[str, Any]) -> None:
        _refuse_missing(owner, required, details)
        first = [details[name] for name in takewhile(details.__contains__, placed)]
        rest = details if takes_all else [name for name in names if name in details]
        method(*first, **{name: details[name] for name in rest if name not in placed})

    if not parameters:
        return lambda details: method()
    if all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        return _positional(names, method, call)
    return call


def _positional(
    names: list[str], method: Callable[..., Any], otherwise: Callable[[dict[str, Any]], Any]
) -> Callable[[dict[str, Any]], Any]:
    """Passes all arguments, in order; `otherwise` where some are not given."""
    first, take = names[0], itemgetter(*names)

    def call_with_one(details: dict[str, Any]) -> None:
        if first in details:
            method(details[first])
        else:
            otherwise(details)

    def call_with_all(details: dict[str, Any]) -> None:
        try:
            values = take(details)
        except KeyError:
            otherwise(details)
            return
        method(*values)

    return call_with_one if len(names) == 1 else call_with_all


def _refuse_missing(owner: str, names: list[str], details: dict[str, Any]) -> None:
    for name in names:
        if name not in details:
            raise ConfigError(
                f"{owner} asks for {name!r}, which the loop does not give; {nearest(name, details)}"
            )
