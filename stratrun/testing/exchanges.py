"""Counting what goes between ranks, and what waits for a device."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# The second is what DTensor and compiled code go by.
_NAMESPACES = ("c10d", "_c10d_functional")
_NO_EXCHANGE = ("wait_tensor", "wrap_tensor_autograd")
_READS = ("aten::_local_scalar_dense",)


class Counted(TorchDispatchMode):
    """Counts exchanges by kind, and reads of a tensor's value by the host, inside its block.

    torch's own counter of exchanges warns of models that return a dict.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: Counter[str] = Counter()
        self.reads: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        full = func.name()
        namespace, _, name = full.partition("::")
        if namespace in _NAMESPACES:
            name = name.partition(".")[0].strip("_")
            if name not in _NO_EXCHANGE:
                self.exchanges[name] += 1
        elif full.partition(".")[0] in _READS:
            self.reads += 1
        return func(*args, **(kwargs or {}))


def reductions(counts: Mapping[str, int]) -> int:
    """How many of the exchanges add something up over the ranks, as those of gradients do."""
    return sum(number for kind, number in counts.items() if "reduce" in kind)


def told(counts: Mapping[str, int]) -> str:
    """Counts for a reader: ``2 allgather_base, 1 reduce_scatter_base``."""
    known = {kind: number for kind, number in sorted(counts.items()) if number}
    return ", ".join(f"{number} {kind}" for kind, number in known.items()) or "nothing"
