"""How much an optimizer will keep, by its settings."""

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer


def expected_state(
    optimizer: Optimizer, size: Callable[[Tensor], int], held: Callable[[Tensor], bool] | None = None
) -> int:
    """Bytes of the state for all its parameters, or for those that are `held`.

    Args:
        size: Bytes of what is made like a parameter.
    """
    total = 0
    for group in optimizer.param_groups:
        # Two moments where there are betas, one where there may be momentum or a mean square.
        copies = 2 + bool(group.get("amsgrad")) if "betas" in group else int(group.get("momentum", 1) != 0)
        trained = (p for p in group["params"] if p.requires_grad and (held is None or held(p)))
        total += copies * sum(map(size, trained))
    return total
