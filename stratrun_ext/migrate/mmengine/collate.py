"""How samples become a batch in MMEngine's words."""

from collections.abc import Mapping, Sequence
from typing import Any

from stratrun.registry import COLLATES


@COLLATES.register_module()
def pseudo_collate(samples: Sequence[Any]) -> Any:
    """A batch as lists of what the samples have: nothing is stacked or becomes a tensor."""
    first = samples[0]
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(pseudo_collate(part) for part in zip(*samples, strict=True)))
    if isinstance(first, Mapping):
        return {key: pseudo_collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, Sequence) and not isinstance(first, str | bytes):
        return [pseudo_collate(part) for part in zip(*samples, strict=True)]
    return list(samples)
