"""Names of stored weights against those of a model: renaming, and what then fits. Nothing is loaded here."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from stratrun.checkpoint.tree import identity
from stratrun.errors import CheckpointError, ConfigError

_SHOWN = 5
_NEAR_AMONG = 2000
"""Names among which a near miss is looked for, which takes its time."""


class Renaming:
    """Regular expressions, and what takes the place of what they match, applied one after the other."""

    def __init__(self, rules: Sequence[tuple[re.Pattern[str], str | None]] = ()) -> None:
        self._rules = tuple(rules)

    @classmethod
    def parse(cls, spec: Any, where: str = "rename") -> "Renaming":
        """Of a dict, or of pairs where the order of a dict cannot be relied on.

        Raises:
            ConfigError: it is neither, or holds no regular expression, or one that cannot be replaced.
        """
        pairs = list(spec.items()) if isinstance(spec, Mapping) else spec
        if not isinstance(pairs, list | tuple) or not all(map(_is_rule, pairs)):
            raise ConfigError(
                f"{where}={spec!r} must be a dict of a regular expression and what takes its place, such as "
                r"{r'^backbone\.(.*)': r'encoder.\1'}; None drops a name"
            )
        return cls([_rule(old, new, where) for old, new in pairs])

    def __bool__(self) -> bool:
        return bool(self._rules)

    def apply(self, names: Iterable[str]) -> dict[str, str | None]:
        """What each name becomes; None where it is dropped.

        Raises:
            ConfigError: an expression matches no name, or two names become the same.
        """
        names = list(names)
        matched: Counter[str] = Counter()
        renamed = {name: self._one(name, matched) for name in names}
        for pattern, _ in self._rules:
            if not matched[pattern.pattern]:
                raise ConfigError(
                    f"rename: {pattern.pattern!r} matches none of the {len(names)} names there; "
                    f"they are like {_some(names, 3)}"
                )
        if names and all(new is None for new in renamed.values()):
            raise ConfigError(
                r"rename drops every name; to take off a prefix write {r'^prefix\.(.*)': r'\1'}, as '' and "
                "None drop a name"
            )
        self._refuse_meeting(renamed)
        return renamed

    def _one(self, name: str, matched: Counter[str]) -> str | None:
        for pattern, new in self._rules:
            if pattern.search(name):
                matched[pattern.pattern] += 1
                if new is None:
                    return None
                name = pattern.sub(new, name)
        return name

    def _refuse_meeting(self, renamed: Mapping[str, str | None]) -> None:
        first: dict[str, str] = {}
        for old, new in renamed.items():
            if new is not None and first.setdefault(new, old) != old:
                raise ConfigError(
                    f"rename makes {new!r} of both {first[new]!r} and {old!r}; drop one of them with None"
                )


@dataclass(slots=True)
class Fit:
    """How stored names meet those of a model. Names are the model's, but for those that it has not."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Names of the model that nothing is stored for."""
    unexpected: list[str] = field(default_factory=list)
    """Stored names, after renaming, that the model has not."""
    skipped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Of another shape: the stored one, and the model's."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The stored name, and what became of it."""
    dropped: list[str] = field(default_factory=list)
    """Stored names that the renaming dropped."""

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unexpected or self.skipped)

    def counts(self) -> str:
        """What there is of each, what there is none of left out."""
        kinds = ("missing", "unexpected", "skipped", "renamed", "dropped")
        counted = [(len(getattr(self, kind)), kind) for kind in kinds]
        return ", ".join([f"{len(self.loaded)} loaded", *(f"{n} {kind}" for n, kind in counted if n)])

    def lines(self, limit: int = 20) -> list[str]:
        """The names that did not fit, for a report."""
        found = [f"missing: {_some(self.missing, limit)}"] if self.missing else []
        if self.unexpected:
            found.append(f"unexpected: {_some(self.unexpected, limit)}")
        if self.skipped:
            shapes = [f"{name!r} {there}, here {here}" for name, (there, here) in self.skipped.items()]
            found.append(f"skipped, of another shape: {_cut(shapes, limit)}")
        return found


def fit(stored: Mapping[str, Any], own: Mapping[str, Any], renaming: Renaming) -> tuple[Fit, dict[str, Any]]:
    """How stored values meet those of a model, and the values that fit, by the model's names.

    A name that shares its tensor with a loaded one, as tied weights do, is not missing.
    """
    found, values = Fit(), {}
    for old, new in renaming.apply(stored).items():
        if new is None:
            found.dropped.append(old)
            continue
        if new != old:
            found.renamed[old] = new
        if new not in own:
            found.unexpected.append(new)
            continue
        there, here = _shape(stored[old]), _shape(own[new])
        if there is None or here is None or there == here:
            values[new] = stored[old]
        else:
            found.skipped[new] = (there, here)
    tied = {_place(own[name]) for name in values} - {None}
    for name, value in own.items():
        if name in values or _place(value) in tied:
            found.loaded.append(name)
            found.skipped.pop(name, None)
        elif name not in found.skipped:
            found.missing.append(name)
    return found, values


def complaint(found: Fit, *, strict: bool, skip: bool) -> str | None:
    """Why a fit is not good enough, and what would help; None where it is.

    Args:
        strict: Whether all names have to fit.
        skip: Whether other shapes may be left out.
    """
    told = []
    if strict and found.missing:
        told.append(f"it lacks {_near(found.missing, found.unexpected)}")
    if strict and found.unexpected:
        told.append(f"it has {_some(found.unexpected, _SHOWN)}, which the model has not")
    if not skip:
        shapes = [f"{n!r} has the shape {a}, and {b} in the model" for n, (a, b) in found.skipped.items()]
        told += [_cut(shapes, _SHOWN)] if shapes else []
    if not told:
        return None
    names = strict and bool(found.missing or found.unexpected)
    hint = _prefix(found.missing, found.unexpected) if names else None
    mend = "strict=False loads what fits" if names else "mismatch='skip' leaves those out"
    return f"{'; '.join(told)}; {f'{hint} may be meant; ' if hint else ''}{mend}"


def refuse(found: Fit, what: str, *, strict: bool, skip: bool) -> None:
    """
    Raises:
        CheckpointError: the fit is not good enough; says how.
    """
    told = complaint(found, strict=strict, skip=skip)
    if told is None and not found.loaded and not found.whole:
        # Not strict, but to train from random weights is not what was asked for.
        hint = _prefix(found.missing, found.unexpected)
        told = f"nothing of it fits, be it by name or by shape{f'; {hint} may be meant' if hint else ''}"
    if told is not None:
        raise CheckpointError(f"{what}: {told}")


def _is_rule(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return isinstance(pair[0], str) and (pair[1] is None or isinstance(pair[1], str))


def _rule(old: str, new: str | None, where: str) -> tuple[re.Pattern[str], str | None]:
    try:
        pattern = re.compile(old)
    except re.error as error:
        raise ConfigError(f"{where}: {old!r} is no regular expression: {error}") from error
    if not new:
        return pattern, None
    try:
        pattern.sub(new, "")  # which looks at what is put in, even where nothing matches
    except (re.error, IndexError) as error:
        raise ConfigError(f"{where}: {new!r} cannot take the place of {old!r}: {error}") from error
    return pattern, new


def _shape(value: Any) -> tuple[int, ...] | None:
    """None where it is not known before the first batch."""
    return None if is_lazy(value) else tuple(getattr(value, "shape", ()))


def _place(value: Any) -> Any:
    """What tied names have in common."""
    if is_lazy(value) or not isinstance(value, Tensor) or not value.numel():
        return None
    return identity(value)


def _some(names: Sequence[str], limit: int) -> str:
    return _cut(list(map(repr, names)), limit)


def _cut(texts: list[str], limit: int) -> str:
    rest = len(texts) - limit
    return f"{', '.join(texts[:limit])} and {rest} more" if rest > 0 else ", ".join(texts)


def _near(missing: list[str], unexpected: list[str]) -> str:
    """Missing names, each with the stored one that may be it."""
    told = []
    for name in missing[:_SHOWN]:
        close = get_close_matches(name, unexpected[:_NEAR_AMONG], n=1, cutoff=0.6)
        told.append(f"{name!r} (is it {close[0]!r}?)" if close else repr(name))
    return _cut(told + [""] * (len(missing) - len(told)), _SHOWN)


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """The renaming that would help, where a prefix is all that differs."""
    if not missing or not unexpected:
        return None
    here = missing[0]
    for there in unexpected:
        if there.endswith(f".{here}"):
            prefix = there[: -len(here)]
            if {prefix + name for name in missing} <= set(unexpected):
                return f"rename={{r'^{re.escape(prefix)}(.*)': r'\\1'}}"
        elif here.endswith(f".{there}"):
            prefix = here[: -len(there)]
            if {prefix + name for name in unexpected} <= set(missing):
                return f"rename={{r'^(.*)': r'{prefix}\\1'}}"
    return None
