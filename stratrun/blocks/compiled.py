"""Compiling of blocks one by one."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn


@dataclass
class Compiler:
    """`torch.compile` with the options of a run: one compiled function for all blocks built alike."""

    options: Mapping[str, Any]
    labels: dict[tuple[str, int], str] = field(default_factory=dict)
    """What was compiled, by the file and the line that it is defined in."""
    _made: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def of(self, function: Callable[..., Any], build: Any, label: str) -> Callable[..., Any]:
        """`function` compiled: another one for each kind of `build` that is called with it."""
        compiled = self._made.get((function, build))
        if compiled is None:
            target = _copied(function) if isinstance(function, FunctionType) else function
            code = getattr(target, "__code__", None)
            if code is not None:
                self.labels[code.co_filename, code.co_firstlineno] = label
            _let_torch_look()
            compiled = self._made[function, build] = torch.compile(target, **self.options)
        return compiled

    def __deepcopy__(self, memo: dict[int, Any]) -> "Compiler":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "labels": self.labels, "_made": {}}


@contextmanager
def explained(block: nn.Module) -> Iterator[None]:
    """Say of an error of the compiler what it was at."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            error.add_note(
                f"while compiling the forward of {type(block).__name__}; without compile= it is not"
            )
        raise


def _let_torch_look() -> None:
    """Pass over a warning of torch's about what torch itself does as it traces.

    It is not shown anyway, but where warnings are errors it would be one, for each block behind another.
    """
    warnings.filterwarnings(
        "ignore", "The .grad attribute of a Tensor", UserWarning, module=r"torch\._(dynamo|subclasses)"
    )


def _copied(function: FunctionType) -> FunctionType:
    """The same with a code object of its own.

    torch keeps what it has compiled with the code object, and gives up after so many times: without this
    those of other shapes, and of earlier runs in this process, would count.
    """
    code = function.__code__.replace()
    copy = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    return copy
