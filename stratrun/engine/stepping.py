"""The call of an optimizer, and what is to be said of those that cannot be called like this."""

from collections.abc import Callable
from inspect import signature

from torch import OutOfMemoryError
from torch.optim import Optimizer

from stratrun.errors import ConfigError
from stratrun.precision.base import Precision
from stratrun.spread import is_spread


def stepped(
    precision: Precision, optimizer: Optimizer, strategy: str, step: Callable[[], object] | None = None
) -> bool:
    """Update once; False where the precision has dropped the update.

    Args:
        step: Makes the update, where the precision has no part in it.

    Raises:
        ConfigError: it wants more than gradients.
    """
    try:
        if step is None:
            return precision.step(optimizer)
        step()
        return True
    except TypeError as error:
        _note_if_spread(error, optimizer, strategy)
        closure = signature(optimizer.step).parameters.get("closure")
        if closure is None or closure.default is not closure.empty:
            raise
        raise ConfigError(
            f"{type(optimizer).__name__} calls for the loss several times in an update, by a closure, "
            "which a training step does not have; take another optimizer"
        ) from error
    except RuntimeError as error:
        _note_if_spread(error, optimizer, strategy)
        raise


def take_one_by_one_if_mixed(name: str, optimizer: Optimizer) -> None:
    """Kernels that take many parameters at once do not take some that are spread over ranks and some not."""
    for group in optimizer.param_groups:
        if len({is_spread(p) for p in group["params"]}) < 2:
            continue
        for option in ("foreach", "fused"):
            if group.get(option):
                raise ConfigError(
                    f"optimizer {name!r}: {option}=True takes many parameters at once, which must all "
                    "be spread over ranks, or none; leave it out, or give those that are not their own group"
                )
            if option in group:
                group[option] = False


def _note_if_spread(error: Exception, optimizer: Optimizer, strategy: str) -> None:
    """Say why an update may fail that one process can make."""
    # Not of lacking memory, which is another matter.
    if isinstance(error, OutOfMemoryError) or not any(
        is_spread(p) for group in optimizer.param_groups for p in group["params"]
    ):
        return
    error.add_note(
        f"strategy={strategy!r} spreads parameters over ranks; {type(optimizer).__name__} updates them by an "
        "operation that torch does not have for parts, or not with these options; take another optimizer, or "
        "strategy='ddp'"
    )
