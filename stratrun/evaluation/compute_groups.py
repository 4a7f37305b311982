"""Which members of a torchmetrics MetricCollection may share a state."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

# Settings that only `compute` reads, and what is peculiar to each object or class.
_AFTERWARDS = {"beta", "zero_division", "prefix", "postfix"}
_PECULIAR = {"update", "compute", "plot", "_abc_impl", "_defaults"}
_PECULIAR |= {"higher_is_better", "is_differentiable", "full_state_update"}


def settle_groups(collection: Any) -> None:
    """Let only those members share a state for which it is surely the same.

    Left to itself a collection groups the members whose states agree after the first batch. After a small
    batch they may agree by chance (two thresholds, one sample), and every member but the first
    would be wrong from then on. Groups that the user chose are left alone.
    """
    if collection._enable_compute_groups is not True or collection._groups_checked:
        return
    groups: dict[Any, list[str]] = {}
    for name, member in collection.items(keep_base=True, copy_state=False):
        groups.setdefault(_likeness(member), []).append(name)
    collection._enable_compute_groups = list(groups.values())
    # Adding nothing makes it take the groups over.
    collection.add_metrics([])


def _likeness(member: Any) -> Any:
    """Equal for two metrics only if their states are the same function of what they see."""
    if not member._defaults or len(list(member.modules())) > 1:
        return id(member)
    defaults = {name: _shown(value) for name, value in member._defaults.items()}
    hidden = {*_AFTERWARDS, *_PECULIAR, *defaults}
    settings = {name: _shown(value) for name, value in vars(member).items() if name not in hidden}
    behaviour = {name: _shown(value) for name, value in _of_class(type(member)) if name not in hidden}
    update = _shown(type(member).update)
    return update, *(tuple(sorted(part.items())) for part in (defaults, settings, behaviour))


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and constants that a class has beyond those of every metric."""
    for name in dir(kind):
        if not name.startswith(("__", "plot_")):
            yield name, getattr(kind, name)


def _shown(value: Any) -> str:
    # The repr of a function has its address, that of a long tensor leaves values out.
    return f"{value.dtype} {value.tolist()}" if isinstance(value, Tensor) else repr(value)
