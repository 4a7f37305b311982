"""Watching all hooks for a while, beside others that watch them too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stratrun.hooks.base import Hook

if TYPE_CHECKING:
    from stratrun.hooks.dispatch import Around, HookList


class Watching:
    """Puts something around each call of a hook, within what is there already, and takes it away again."""

    def __init__(self) -> None:
        self._hooks: HookList | None = None
        self._before: Around | None = None

    def begin(self, hooks: HookList, around: Around) -> None:
        self._hooks, self._before = hooks, hooks.around
        hooks.around = around if self._before is None else _nested(self._before, around)

    def end(self) -> None:
        if self._hooks is not None:
            self._hooks.around = self._before
            self._hooks = None


def _nested(outer: Around, inner: Around) -> Around:
    @contextmanager
    def both(hook: Hook, point: str) -> Iterator[None]:
        with outer(hook, point), inner(hook, point):
            yield

    return both
