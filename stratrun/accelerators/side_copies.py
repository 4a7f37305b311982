"""Bring batches to a device while it is at work on others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Note = TypeVar("Note")


class Streams(Protocol):
    """What is used of a module such as `torch.cuda`."""

    def Stream(self, device: Any = None) -> Any: ...

    def stream(self, stream: Any) -> AbstractContextManager[Any]: ...

    def current_stream(self, device: Any = None) -> Any: ...


class SideCopies:
    """Copies to a device on a stream of their own, so that they need not queue behind its work.

    Work on a batch waits on the device for the copy, the host for neither. The memory of a batch, which
    belongs to the side stream, is used again only when the work that was queued by the time it is let go
    is done.

    Args:
        streams: `torch.cuda`, or the like for other hardware.
    """

    def __init__(self, streams: Streams, device: torch.device) -> None:
        self._streams = streams
        self._device = device
        self._side: Any = None

    def over(
        self, batches: Iterator[tuple[Any, Note]], move: Callable[[Any], Any], *, ahead: bool
    ) -> Iterator[tuple[Any, Note]]:
        """The batches on the device, each with what came with it.

        Args:
            ahead: Whether to read and copy a batch before the one before it is handed out. Otherwise its
                copy goes on beside what the host had queued by the time that it was asked for.
        """
        begun: tuple[_Copy, Note] | None = None
        for batch, note in batches:
            coming = self._begin(batch, move), note
            if not ahead:
                yield self._finish(coming[0], move), note
                continue
            if begun is not None:
                yield self._finish(begun[0], move), begun[1]
            begun = coming
        if begun is not None:
            yield self._finish(begun[0], move), begun[1]

    def _begin(self, batch: Any, move: Callable[[Any], Any]) -> "_Copy":
        tensors = tensors_in(batch)
        if tensors is None or not tensors or any(tensor.device.type != "cpu" for tensor in tensors):
            # Made by work on the device that the side stream does not wait for, or out of reach.
            return _Copy(batch, None)
        if self._side is None:
            self._side = self._streams.Stream(self._device)
        with self._streams.stream(self._side):
            moved = move(batch)
        return _Copy(moved, self._side.record_event())

    def _finish(self, copy: "_Copy", move: Callable[[Any], Any]) -> Any:
        batch, done = copy
        if done is None:
            return move(batch)
        current = self._streams.current_stream(self._device)
        current.wait_event(done)
        for tensor in tensors_in(batch) or ():
            tensor.record_stream(current)
        return batch


class _Copy(NamedTuple):
    """A batch whose copy is under way until the event `done`; None if it is still to be moved."""

    batch: Any
    done: Any


def tensors_in(batch: Any) -> list[Tensor] | None:
    """All tensors of a nested batch; None where it has an object that is moved by a method of its own."""
    found: list[Tensor] = []
    return found if _collect(batch, found) else None


def _collect(value: Any, found: list[Tensor]) -> bool:
    if isinstance(value, Tensor):
        found.append(value)
        return True
    if callable(getattr(value, "to", None)) and not isinstance(value, type):
        return False
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, list | tuple):
        children = value
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, field.name) for field in fields(value)]
    return all(_collect(child, found) for child in children)
