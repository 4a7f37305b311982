"""What the schema of an operation tells of it."""

from typing import Any

import torch
from torch import Tensor

from stratrun.deferred.tape import tensors

# Operations that write all of their first argument, and read none of it.
_OVERWRITE = frozenset(
    (
        *("bernoulli_", "cauchy_", "copy_", "exponential_", "fill_", "geometric_", "log_normal_", "normal_"),
        *("random_", "uniform_", "zero_"),
    )
)
# Operations that take only the shape, the dtype and the device from a tensor.
_SHAPES = frozenset(
    (
        *("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"),
        *("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
    )
)


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that it writes to."""
    found: list[Tensor] = []
    if not func._schema.is_mutable:
        return found
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        found.extend(tensors(value))
    return found


def is_random(func: Any) -> bool:
    # Torch does not mark all of them, such as `random_`.
    takes = any("Generator" in str(one.type) for one in func._schema.arguments)
    return takes or torch.Tag.nondeterministic_seeded in func.tags


def overwrites(func: Any) -> bool:
    return _name(func) in _OVERWRITE


def reads_shapes(func: Any) -> bool:
    return _name(func) in _SHAPES


def returns_values(func: Any) -> bool:
    """Whether it returns numbers, for which tensors must have values."""
    return any("Tensor" not in str(one.type) for one in func._schema.returns)


def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.rpartition("::")[2]
