"""What is to go, said in time: where it is used, since when, what takes its place, and when it is gone.

    @deprecated(since="0.2", removed_in="0.4", use="stratrun.new_function")
    def old_function(): ...

    @renamed_arguments({"every": "interval"}, since="0.2", removed_in="0.4")
    def __init__(self, interval=1): ...

    HOOKS.renamed("OldHook", "NewHook", since="0.2", removed_in="0.4")

docs/versioning.md says how long that has to be.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

ALL: list[Deprecation] = []
"""Each one that was declared, for the test that holds them against the version."""
_HOME = f"{Path(__file__).parent}{os.sep}"
# Where properties and the like are worked out, between one line of a user's and another.
_BETWEEN = (_HOME, functools.__file__, contextlib.__file__)


class StratrunDeprecationWarning(FutureWarning):
    """Something of stratrun that is used here will be gone. Shown by default, wherever it is used."""


@dataclass(frozen=True, slots=True)
class Deprecation:
    """Something that is to go."""

    what: str
    since: str
    removed_in: str
    use: str

    def __post_init__(self) -> None:
        if _number(self.since) >= _number(self.removed_in):
            raise ValueError(f"{self.what}: removed in {self.removed_in}, deprecated since {self.since} only")
        ALL.append(self)

    def warn(self) -> None:
        """Warn at the line of the user's that led here, once a line."""
        warnings.warn(str(self), StratrunDeprecationWarning, stacklevel=_outside())

    def __str__(self) -> str:
        return (
            f"{self.what} is deprecated since stratrun {self.since} and will be removed in "
            f"{self.removed_in}; use {self.use}"
        )


def deprecated(*, since: str, removed_in: str, use: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have each call of a function, or of a class, warn.

    Args:
        use: What to write in its place.
    """

    def decorate(entry: Callable[P, R]) -> Callable[P, R]:
        said = Deprecation(f"{entry.__module__}.{entry.__qualname__}", since, removed_in, use)
        kind: Any = entry
        if not inspect.isclass(kind):
            return _warning(entry, said)
        kind.__init__ = _warning(kind.__init__, said)  # type: ignore[method-assign]
        return entry

    return decorate


def renamed_arguments(
    names: Mapping[str, str], *, since: str, removed_in: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Take arguments of a function, or of an ``__init__``, by their old names too.

    Configs may have the old names as well, in every place where the class is named by `type`.

    Args:
        names: Of each old name the new one.

    Raises:
        TypeError: a call has both the old name and the new one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        title = f"{function.__module__}.{function.__qualname__}".removesuffix(".__init__")
        said = {
            old: Deprecation(f"{title}({old}=)", since, removed_in, f"{new}=") for old, new in names.items()
        }

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = kwargs
            for old in [name for name in names if name in given]:
                if names[old] in given:
                    raise TypeError(f"{title}() got {old}= and {names[old]}=, which is its new name")
                said[old].warn()
                given[names[old]] = given.pop(old)
            return function(*args, **kwargs)

        # One that is renamed within may have got its name from here.
        inner: Mapping[str, str] = getattr(function, "renamed_arguments", {})
        cast(Any, call).renamed_arguments = {
            **inner,
            **{old: inner.get(new, new) for old, new in names.items()},
        }
        return call

    return decorate


def renamings_of(entry: Callable[..., Any]) -> Mapping[str, str]:
    """The old names of arguments that a call still takes, and their new ones."""
    made = getattr(entry, "__init__", None) if inspect.isclass(entry) else entry
    found: Mapping[str, str] = getattr(made, "renamed_arguments", {})
    return found


def _warning(function: Callable[P, R], said: Deprecation) -> Callable[P, R]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        said.warn()
        return function(*args, **kwargs)

    return call


def _outside() -> int:
    """How many frames up the first one is that is not of this package."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    return level


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
