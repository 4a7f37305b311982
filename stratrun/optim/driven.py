"""Parameter groups as a scheduler of the learning rate sees them, when it is to move something else."""

from collections.abc import MutableMapping, Sequence
from typing import Any

from torch.optim import Optimizer

from stratrun.errors import ConfigError, nearest

RATE = "lr"


class Driven(Optimizer):
    """Another value of parameter groups, or that of some groups alone, in the place of their learning rate.

    torch's schedulers move the key `lr` of all groups, and keep what else they need beside it under names
    that have `lr` in them. Here these are keys of the value that is meant, in the groups of the real
    optimizer, with which they are saved. It updates nothing.

    Args:
        param: The key of the groups; ``momentum`` is the first of `betas` where there is no such key.
        groups: Numbers of the groups.
    """

    def __init__(self, optimizer: Optimizer, param: str, groups: Sequence[int]) -> None:
        # Not that of the base class, which would take the parameters for its own.
        self.optimizer = optimizer
        self.param = param
        self.numbers: tuple[int, ...] = tuple(groups)
        # Schedulers that move momentum against the learning rate look here whether there is one.
        self.defaults: dict[str, Any] = dict(optimizer.defaults) if param == RATE else {}
        self._real: Any = None
        self._seen: list[_Values] = []

    @property
    def param_groups(self) -> list[Any]:  # type: ignore[override]
        groups = self.optimizer.param_groups
        if self._real is not groups:  # others, once a state was loaded
            self._real, self._seen = groups, [_Values(groups[n], self.param) for n in self.numbers]
        return self._seen

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError("the optimizer itself updates")


class _Values:
    """A parameter group whose `lr` is another of its values: as much of a mapping as schedulers use."""

    def __init__(self, group: dict[str, Any], param: str) -> None:
        self._group, self._param = group, param

    def __getitem__(self, key: str) -> Any:
        return value_of(self._group, self._param) if key == RATE else self._group[self._key(key)]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == RATE and in_betas(self._group, self._param):
            self._group["betas"] = (value, *self._group["betas"][1:])
        else:
            self._group[self._key(key)] = value

    def __contains__(self, key: str) -> bool:
        return key == RATE or self._key(key) in self._group

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: str, default: Any) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def _key(self, key: str) -> str:
        return key if self._param == RATE else key.replace(RATE, self._param)


def real(optimizer: Optimizer) -> Optimizer:
    """The optimizer that updates."""
    return optimizer.optimizer if isinstance(optimizer, Driven) else optimizer


def in_betas(group: MutableMapping[str, Any], param: str) -> bool:
    return param == "momentum" and param not in group and "betas" in group


def value_of(group: MutableMapping[str, Any], param: str) -> Any:
    """A value of a parameter group; the momentum of Adam and its like is the first of `betas`.

    Raises:
        KeyError: the group has none of that name.
    """
    return group["betas"][0] if in_betas(group, param) else group[param]


def numbers_of(optimizer: Optimizer, groups: Any, where: str) -> list[int]:
    """The numbers of the groups that are meant: by their key `name`, else by their number; None for all.

    Raises:
        ConfigError: no group is called so.
    """
    names = [str(group.get("name", number)) for number, group in enumerate(optimizer.param_groups)]
    if groups is None:
        return list(range(len(names)))
    found = []
    for wanted in [groups] if isinstance(groups, str | int) else groups:
        if str(wanted) not in names:
            raise ConfigError(
                f"{where}: no parameter group is called {wanted!r}; {nearest(str(wanted), names)}"
            )
        found += [number for number, name in enumerate(names) if name == str(wanted)]
    return sorted(set(found))


def target(optimizer: Optimizer, param: str, groups: Any, where: str) -> Optimizer:
    """What a scheduler gets as its optimizer, to move `param` of `groups`.

    Raises:
        ConfigError: a group is not there, or has no number under that name.
    """
    numbers = numbers_of(optimizer, groups, where)
    for number in numbers:
        group = optimizer.param_groups[number]
        if not in_betas(group, param) and (
            isinstance(group.get(param), bool) or not _is_number(group, param)
        ):
            known = [key for key in group if _is_number(group, key) and not isinstance(group[key], bool)]
            known += ["momentum"] if "betas" in group else []
            raise ConfigError(
                f"{where}: param={param!r} is no number of the parameter groups of "
                f"{type(optimizer).__name__}; {nearest(param, known)}"
            )
    if param == RATE and len(numbers) == len(optimizer.param_groups):
        return optimizer
    return Driven(optimizer, param, numbers)


def _is_number(group: MutableMapping[str, Any], key: str) -> bool:
    # A learning rate may be a tensor.
    return isinstance(group.get(key), int | float) or hasattr(group.get(key), "fill_")
