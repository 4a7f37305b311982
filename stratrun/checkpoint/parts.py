"""Parts of what was saved, for a run that is not the one that saved it."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stratrun.checkpoint.mapping import Fit, Renaming
from stratrun.checkpoint.reader import opened
from stratrun.checkpoint.skeleton import entries_of
from stratrun.checkpoint.weights import AVERAGES, FILES, MODEL, read_weights
from stratrun.errors import ConfigError, nearest
from stratrun.registry.arguments import at
from stratrun.storage import Folder
from stratrun.storage.urls import redacted

# What a user calls a part, and the entries of the shared state that it is made of. Loaded in this
# order: loading the others may draw random numbers.
PARTS: dict[str, tuple[str, ...]] = {
    "model": (MODEL,),
    "optimizer": ("optimizers",),
    "scheduler": ("schedules",),
    "precision": ("precision",),
    "counters": ("counters",),
    "hooks": ("hooks",),
    "data": ("data", "seed"),
    "rng": (),
}
OF_A_RANK = frozenset({"rng", "data"})
"""Parts of which each rank has saved its own, too."""
NamedRoom = Callable[..., Tensor | None]
"""As `reader.Room`, with the names of the model for stored ones as `renamed`."""

_NEEDS = {
    "scheduler": ("optimizer", "the learning rates that it moves lie in the optimizer"),
    "data": ("counters", "a position in the data is one in an epoch, which the counters tell"),
}
_KEYS = ("path", "parts", "rename", "mismatch", "strict", "weights", "storage_options")


@dataclass(frozen=True, slots=True)
class LoadFrom:
    """What `load_from` says, held against itself. Nothing is looked up."""

    path: str
    parts: tuple[str, ...] = ("model",)
    rename: Renaming = field(default_factory=Renaming)
    strict: bool = True
    """Whether all names have to fit."""
    skip: bool = False
    """Whether what has another shape may be left out."""
    weights: Literal["model", "ema", "swa"] = "model"
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, spec: Any) -> "LoadFrom":
        """Of a path, or of a dict of `path`, `parts`, `rename`, `mismatch`, `strict`, `weights` and
        `storage_options`.

        Raises:
            ConfigError: a key or a value makes no sense, alone or with the others.
        """
        if isinstance(spec, str | os.PathLike) and os.fspath(spec):
            return cls(str(os.fspath(spec)))
        if not isinstance(spec, Mapping):
            shown = repr(spec) if spec == "" else type(spec).__name__
            raise ConfigError(
                f"load_from: {shown} is no path; give that of a checkpoint or of weights, "
                "or load what you have into the model itself"
            )
        for key in spec:
            if key not in _KEYS:
                raise ConfigError(
                    f"load_from takes no {key!r}; {nearest(str(key), _KEYS)}{at(_places(spec), key)}"
                )
        path = spec.get("path")
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ConfigError(f"load_from: path={path!r} is no path; give that of a checkpoint or of weights")
        strict = _one_of(spec, "strict", (True, False))
        made = cls(
            path=str(os.fspath(path)),
            parts=_parts(spec.get("parts", ["model"])),
            rename=Renaming.parse(spec.get("rename") or {}, "load_from: rename"),
            strict=strict,
            skip=_one_of(spec, "mismatch", ("error", "skip"), "error" if strict else "skip") == "skip",
            weights=_one_of(spec, "weights", ("model", *AVERAGES)),
            options=_options(spec.get("storage_options")),
        )
        made._refuse_senseless()
        return made

    @property
    def url(self) -> str:
        """Where it is read, without credentials."""
        return redacted(self.path)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of weights, by its name."""
        return self.path.lower().endswith(FILES)

    def __str__(self) -> str:
        return f"load_from={self.url!r}"

    def _refuse_senseless(self) -> None:
        for part, (needed, why) in _NEEDS.items():
            if part in self.parts and needed not in self.parts:
                raise ConfigError(f"load_from: parts has {part!r} without {needed!r}, but {why}; add it")
        if self.weights != "model" and "model" not in self.parts:
            raise ConfigError(
                f"load_from: weights={self.weights!r} says which weights go into the model, but 'model' is "
                "not in parts"
            )
        if self.rename and not {"model", "optimizer"} & set(self.parts):
            raise ConfigError(
                "load_from: rename changes names of the model, but parts has neither 'model' nor 'optimizer'"
            )
        if self.is_file:
            refuse_parts_of_file(self)


def refuse_parts_of_file(wanted: LoadFrom) -> None:
    """
    Raises:
        ConfigError: more than weights is wanted of a file of weights.
    """
    others = [part for part in wanted.parts if part != "model"]
    if others:
        raise ConfigError(
            f"{wanted} is a file of weights, which has no {', '.join(map(repr, others))}; "
            "leave those out, or give a checkpoint"
        )
    if wanted.weights != "model":
        raise ConfigError(
            f"{wanted} is a file of weights, which has no averages beside them; "
            f"leave weights={wanted.weights!r} out, or give a checkpoint"
        )


@dataclass(slots=True)
class LoadReport:
    """What `load_from` did. The lists are those of the model; `fits` has the optimizers' too."""

    url: str
    parts: tuple[str, ...]
    fits: dict[str, Fit] = field(default_factory=dict)
    """By part: ``model``, ``the optimizer``, or ``optimizer 'name'`` where there are several."""
    notes: list[str] = field(default_factory=list)
    """What else was loaded, and what could not be."""

    @property
    def model(self) -> Fit:
        return self.fits.get("model") or Fit()

    @property
    def loaded(self) -> list[str]:
        return self.model.loaded

    @property
    def missing(self) -> list[str]:
        return self.model.missing

    @property
    def unexpected(self) -> list[str]:
        return self.model.unexpected

    @property
    def skipped(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The stored shape and the model's, by name."""
        return self.model.skipped

    @property
    def renamed(self) -> dict[str, str]:
        return self.model.renamed

    def joined(self, later: "LoadReport") -> "LoadReport":
        """This and what was loaded after it."""
        return LoadReport(
            later.url, self.parts + later.parts, {**self.fits, **later.fits}, [*self.notes, *later.notes]
        )

    def __str__(self) -> str:
        """One line where everything fits, otherwise with the names that do not."""
        told = [f"{what}: {one.counts()}" for what, one in self.fits.items()]
        lines = [f"loaded from {self.url}: {'; '.join([*told, *self.notes])}"]
        for what, one in self.fits.items():
            lines += [f"  {what}: {line}" for line in one.lines()]
        return "\n".join(lines)


def read_shared(folder: Folder, keys: Iterable[str], rename: Renaming, room: NamedRoom) -> dict[str, Any]:
    """Entries of the shared state of one checkpoint, verified, fetching nothing else.

    Args:
        rename: What names of weights are in the model, for whose weights there is room.

    Raises:
        CheckpointCorruptedError: it is damaged; names those beside it.
        CheckpointError: it has no such entry.
    """
    with opened(folder) as stored:
        renamed = rename.apply(entries_of(entries_of(stored.skeleton).get(MODEL))) if rename else None
        into = partial(room, renamed=renamed)
        return {key: stored.read_part(key, template=into) for key in keys}


def averages_in(folder: Folder) -> list[str]:
    """Which averages a checkpoint has beside its weights, by what `weights` calls them."""
    with opened(folder) as stored:
        hooks = entries_of(entries_of(stored.skeleton).get("hooks"))
        own = {kind: [name for name in hooks if name.startswith(hook)] for kind, hook in AVERAGES.items()}
        return [
            kind for kind, names in own.items() if any(entries_of(hooks[n]).get("averages") for n in names)
        ]


def read_file(wanted: LoadFrom) -> dict[str, Any]:
    """The shared state that a file of weights amounts to."""
    refuse_parts_of_file(wanted)
    return {MODEL: read_weights(wanted.path, **wanted.options)}


def _parts(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(f"load_from: parts={given!r} must be a list of some of {', '.join(PARTS)}")
    for part in given:
        if part not in PARTS:
            close = get_close_matches(str(part), PARTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(PARTS)}"
            raise ConfigError(f"load_from: parts has {part!r}, which is no part of a checkpoint; {hint}")
        if given.count(part) > 1:
            raise ConfigError(f"load_from: parts has {part!r} twice; leave one out")
    return tuple(part for part in PARTS if part in given)


def _one_of(spec: Mapping[str, Any], key: str, known: tuple[Any, ...], default: Any = None) -> Any:
    value = spec.get(key, known[0] if default is None else default)
    if not any(value is one or (isinstance(one, str) and value == one) for one in known):
        shown = " or ".join(map(repr, known))
        raise ConfigError(f"load_from: {key}={value!r} must be {shown}{at(_places(spec), key)}")
    return value


def _options(given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"load_from: storage_options must be a dict for the fsspec file system, got a "
            f"{type(given).__name__}"
        )
    return dict(given or {})


def _places(spec: Mapping[str, Any]) -> Mapping[str, str]:
    places: Mapping[str, str] = getattr(spec, "places", {})
    return places
