"""Which parts of a model are its blocks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from stratrun.errors import ConfigError, nearest

Named = list[tuple[str, nn.Module]]

_SEVERAL = (list, tuple, set, frozenset)
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_FORMS = "give 'auto', a class, a name such as 'Block' or 'layers.*', a list of them, or dict(min_params=N)"
_LISTED = 12
"""How many kinds of parts a message tells."""


def select(module: nn.Module, spec: Any, what: str) -> Named:
    """The blocks of `module` by name, an outer one before those within it. Never `module` itself.

    Args:
        spec: ``None`` or ``"auto"``: what repeats, see `repeated`; nothing, if nothing does. ``False``: none.
            A class, the name of a class or of a part, or a list of them; in a name ``*`` stands for one
            step, as in ``"encoder.layers.*"``, and ``**`` for any number. ``dict(min_params=N)``: the
            smallest parts that hold so many parameters beside those of the blocks within.
        what: The argument that `spec` was given for, as in ``strategy: blocks``.

    Raises:
        ConfigError: the spec is none of these, or nothing of the model is meant by it.
    """
    check_spec(spec, what)
    if spec is False:
        return []
    if spec is None or spec == "auto":
        return repeated(module)
    parts = [(name, part) for name, part in module.named_modules() if name]
    if isinstance(spec, Mapping):
        found = _large(module, spec["min_params"])
        if not found:
            raise ConfigError(
                f"{what}={_shown(spec)}: no part of {type(module).__name__} has so many; {_largest(parts)}"
            )
        return found
    chosen: set[int] = set()
    for one in spec if isinstance(spec, _SEVERAL) else [spec]:
        chosen |= _meant(module, parts, one, what)
    return [(name, part) for name, part in parts if id(part) in chosen]


def check_spec(spec: Any, what: str) -> None:
    """Refuse what could be no choice of blocks, whatever the model.

    Raises:
        ConfigError: says what would do.
    """
    if spec is None or spec is False:
        return
    if isinstance(spec, Mapping):
        for key in spec:
            if key != "min_params":
                raise ConfigError(
                    f"{what}={_shown(spec)}: {key!r} is not known; {nearest(key, ['min_params'])}"
                )
        least = spec.get("min_params")
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise ConfigError(f"{what}: min_params={least!r} must be a whole number of parameters, from 1 on")
        return
    several = isinstance(spec, _SEVERAL)
    if several and not spec:
        raise ConfigError(f"{what}={spec!r} is an empty list; write False for no blocks, or {_FORMS}")
    for one in spec if several else [spec]:
        if not (isinstance(one, str) and one) and not (isinstance(one, type) and issubclass(one, nn.Module)):
            raise ConfigError(f"{what}={_shown(one)} says of no blocks which; {_FORMS}")


def repeated(module: nn.Module) -> Named:
    """The outermost modules of a class of which two lie in one list with parameters of the same shapes.

    A list is a `ModuleList`, a `ModuleDict` or a `Sequential`. Layers of torch that have none within, such
    as `Linear`, are no blocks. Where such a class is found, all modules of it are taken, as are those
    of other shapes.
    """
    alike = set(_alike(module))
    classes = {type(part) for part in module.modules() if id(part) in alike} - set(_LISTS)

    def outermost(parent: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, part in parent.named_children():
            if id(part) in alike or type(part) in classes:
                yield path + name, part
            else:
                yield from outermost(part, f"{path}{name}.")

    found = {id(part): (name, part) for name, part in reversed(list(outermost(module, "")))}
    return list(reversed(found.values()))


def _alike(parent: nn.Module) -> Iterator[int]:
    """Identities of the siblings in a list that are of one class, and two of them built alike."""
    kinds: dict[type, list[nn.Module]] = {}
    if isinstance(parent, _LISTS):
        for part in parent.children():
            if _may_be_block(part):
                kinds.setdefault(type(part), []).append(part)
    taken = {
        id(part)
        for siblings in kinds.values()
        if max(Counter(map(build_of, siblings)).values()) > 1
        for part in siblings
    }
    yield from taken
    for part in parent.children():
        if id(part) not in taken:
            yield from _alike(part)


def _may_be_block(part: nn.Module) -> bool:
    layer_of_torch = type(part).__module__.startswith("torch.nn.") and not any(part.children())
    return not layer_of_torch and _is_callable(part) and any(True for _ in part.parameters())


def _is_callable(part: nn.Module) -> bool:
    """A list of modules is not, unless it derives a forward of its own."""
    return type(part).forward is not nn.Module.forward or "forward" in vars(part)


def build_of(part: nn.Module) -> tuple[tuple[str, Any], ...]:
    """What modules of one class have in common that are alike: names and shapes of parameters."""
    return tuple((name, None if is_lazy(p) else tuple(p.shape)) for name, p in part.named_parameters())


def _meant(module: nn.Module, parts: Named, one: Any, what: str) -> set[int]:
    """Identities of the parts that a class, or a name, stands for."""
    if isinstance(one, type):
        found = [part for _, part in parts if isinstance(part, one)]
    else:
        steps = one.split(".")
        found = [part for name, part in parts if fits(name.split("."), steps) or one in _names(type(part))]
    if not found:
        given = one.__name__ if isinstance(one, type) else one
        known = [name if _is_callable(part) else f"{name}.*" for name, part in parts]
        known += [type(part).__name__ for _, part in parts]
        hint = nearest(given, known) if _has_near(given, known) else _kinds(parts)
        raise ConfigError(f"{what}={_shown(one)} is no part of {type(module).__name__}; {hint}")
    usable = {id(part) for part in found if _is_callable(part)}
    if not usable:
        name = next(name for name, part in parts if part is found[0])
        raise ConfigError(
            f"{what}={_shown(one)} is a list of modules, which is never called itself; "
            f"write {name + '.*'!r} for what is in it"
        )
    return usable


def fits(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a name, cut at its dots, is one that a pattern stands for."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(fits(name[skipped:], pattern[1:]) for skipped in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and fits(name[1:], pattern[1:])


def _names(cls: type) -> set[str]:
    """What a class may be called, those it derives from included."""
    bases = [base for base in cls.__mro__ if base not in (nn.Module, object)]
    return {base.__name__ for base in bases} | {f"{base.__module__}.{base.__qualname__}" for base in bases}


def _large(module: nn.Module, least: int) -> Named:
    """Parts with at least so many parameters that are in no block within them; outer ones first."""
    found: Named = []

    def left_over(part: nn.Module, name: str) -> dict[int, int]:
        """Sizes of the parameters, by identity, that are in no block yet."""
        sizes = {id(p): 0 if is_lazy(p) else p.numel() for p in part.parameters(recurse=False)}
        for child_name, child in reversed(list(part.named_children())):
            sizes |= left_over(child, f"{name}.{child_name}".lstrip("."))
        if name and _is_callable(part) and sum(sizes.values()) >= least:
            found.append((name, part))
            return {}
        return sizes

    left_over(module, "")
    known = {id(part) for _, part in found}
    return [(name, part) for name, part in module.named_modules() if id(part) in known]


def _has_near(name: str, known: Sequence[str]) -> bool:
    return nearest(name, known).startswith("did you mean")


def _kinds(parts: Named) -> str:
    """What a model is made of, for who has named something else."""
    counts = Counter(type(part).__name__ for _, part in parts)
    told = [f"{kind} ({count})" if count > 1 else kind for kind, count in counts.most_common(_LISTED)]
    if not told:
        return "it has no parts at all"
    return f"it is made of {', '.join(told)}{', ...' if len(counts) > _LISTED else ''}"


def _largest(parts: Named) -> str:
    sizes = {name: sum(p.numel() for p in part.parameters() if not is_lazy(p)) for name, part in parts}
    told = sorted(sizes, key=lambda name: -sizes[name])[:3]
    if not told:
        return "it has no parts at all"
    return f"the largest are {', '.join(f'{name} ({sizes[name]:,})' for name in told)}"


def _shown(spec: Any) -> str:
    if isinstance(spec, type):
        return spec.__name__
    return repr(dict(spec) if isinstance(spec, Mapping) else spec)
