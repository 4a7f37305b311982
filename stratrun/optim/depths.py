"""How deep in a model a parameter lies, for learning rates that fall towards the input."""

from typing import Any

from torch import Tensor, nn

from stratrun.blocks.select import select
from stratrun.errors import ConfigError


def depths_of(
    module: nn.Module, parameters: dict[str, Tensor], blocks: Any, where: str
) -> tuple[dict[str, int], int]:
    """The depth of each parameter by name, and the greatest there is.

    With n blocks it is 0 before the first block, that of a block is its number from 1 on, and it is n + 1
    after the last, in the order in which the model names its parameters. What lies between two blocks goes
    with the one before it.

    Args:
        parameters: Those of one optimizer; blocks without any of them are not counted.
        blocks: See `stratrun.blocks.select`.

    Raises:
        ConfigError: there are no blocks.
    """
    prefixes = [f"{name}." for name, _ in select(module, blocks, f"{where}: blocks")]
    inside = {
        name: next((one for one in prefixes if name.startswith(one)), None)  # an outer one comes first
        for name in parameters
    }
    numbers: dict[str, int] = {}
    for block in inside.values():
        if block is not None:
            numbers.setdefault(block, len(numbers) + 1)
    if not numbers:
        raise ConfigError(
            f"{where}: no parts of {type(module).__name__} repeat that this optimizer updates; name them, as "
            "in layer_decay=dict(decay=0.75, blocks='encoder.layers.*')"
        )
    last = max(place for place, block in enumerate(inside.values()) if block is not None)
    depths, present = {}, 0
    for place, (name, block) in enumerate(inside.items()):
        if block is not None:
            present = numbers[block]
        depths[name] = present if place <= last else len(numbers) + 1
    return depths, len(numbers) + 1
