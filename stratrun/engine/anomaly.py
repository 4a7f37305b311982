"""Which operation of the forward pass a value that is no number came about by: autograd's anomaly mode."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stratrun.errors import NonFiniteError

if TYPE_CHECKING:
    from stratrun.engine.engine import Engine

# How torch words it.
_FOUND = "returned nan values"
_WHERE = "forward call"
_INTERNAL = " (Triggered internally"


@contextmanager
def detecting(engine: "Engine", on: bool) -> Iterator[None]:
    """Look at each gradient on the way back, within the block; as it was afterwards."""
    if not on:
        yield
        return
    updates, before = engine._updates, (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    run = updates.run_backward
    updates.run_backward = _explained(run, engine)
    torch.autograd.set_detect_anomaly(True)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(*before)
        updates.run_backward = run


def _explained(run: Callable[[Tensor, Tensor], None], engine: "Engine") -> Callable[[Tensor, Tensor], None]:
    def backward(loss: Tensor, given: Tensor) -> None:
        # Torch tells where an operation was called in a warning, ahead of the error.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                run(loss, given)
                error = None
            except RuntimeError as raised:
                error = raised
        told = [str(one.message).partition(_INTERNAL)[0] for one in caught if _WHERE in str(one.message)]
        for one in caught:
            if _WHERE not in str(one.message):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if error is None:
            return
        if _FOUND not in str(error):
            for text in told:
                error.add_note(text)
            raise error
        raise NonFiniteError(_text(error, told, engine)) from error

    return backward


def _text(error: Exception, told: list[str], engine: "Engine") -> str:
    guard = engine.guard
    scaled = (
        "; an overflow that scaling the loss is there for is found too: look under another precision first"
        if guard is not None and guard.owns_overflow
        else ""
    )
    where = "".join(f"\n{text.rstrip()}" for text in told)
    return (
        f"iteration {engine.state.iter + 1}: on the way back {str(error).strip().rstrip('.')} "
        f"(detect_anomaly=True); keep what goes into that operation away from where it has no derivative, "
        f"such as 0 for sqrt and log, before the operation rather than after it{scaled}{where}"
    )
