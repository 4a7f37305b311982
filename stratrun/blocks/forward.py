"""What stands in for the forward of a block."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stratrun.blocks.compiled import Compiler, explained
from stratrun.blocks.recompute import Recompute
from stratrun.blocks.select import build_of


class BlockForward:
    """The `forward` of one block, called compiled, recomputed, or both.

    It lies on the module itself, as an attribute: class and name of that stay, and so do all names in a
    state dict. What others hang on a call of the module, as sharding does, runs around this: outside of
    what is compiled, and once where this is computed twice.
    """

    def __init__(self, block: nn.Module, compiler: Compiler | None, recompute: bool) -> None:
        self._block = block
        self._own: Callable[..., Any] | None = vars(block).get("forward")
        self._compiler = compiler
        self._build = build_of(block)
        self._compiled: Callable[..., Any] | None = None
        self._recompute = Recompute(block) if recompute else None

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._plain())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recompute = self._recompute
        if recompute is None:
            return self._run(*args, **kwargs)
        if torch.compiler.is_compiling():  # of a region that this block is in
            return recompute.traced(self._plain(), args, kwargs)
        return recompute(self._run, args, kwargs) if torch.is_grad_enabled() else self._run(*args, **kwargs)

    def restore(self) -> None:
        """Give the block its own forward back."""
        if self._own is None:
            vars(self._block).pop("forward", None)
        else:
            self._block.forward = self._own

    def __getstate__(self) -> dict[str, Any]:
        # For copies too: what was compiled may hold on to this block.
        return {**vars(self), "_compiled": None}

    def _plain(self) -> Callable[..., Any]:
        if self._own is not None:
            return self._own
        bound: Callable[..., Any] = type(self._block).forward.__get__(self._block)
        return bound

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiler is None:
            return self._plain()(*args, **kwargs)
        with explained(self._block):
            if self._own is not None:
                return self._made(self._compiler, self._own)(*args, **kwargs)
            return self._made(self._compiler, type(self._block).forward)(self._block, *args, **kwargs)

    def _made(self, compiler: Compiler, function: Callable[..., Any]) -> Callable[..., Any]:
        if self._compiled is None:
            kind = type(self._block)
            # Sharding derives a class from that of the user.
            name = next((c.__name__ for c in kind.__mro__ if "forward" in vars(c)), kind.__name__)
            self._compiled = compiler.of(function, self._build, f"{name}.forward")
        return self._compiled
