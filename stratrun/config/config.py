"""Config: nested data with attribute access."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from stratrun.config.formats import yaml
from stratrun.config.loader import load
from stratrun.config.placed import PlacedDict
from stratrun.config.plain import plain
from stratrun.config.redaction import redacted
from stratrun.errors import ConfigError, nearest


class Config(PlacedDict):
    """A dict whose keys are attributes too and whose values know where they were written.

    `places` says it, on every level: ``config.optimizer.places["lr"]`` is ``base.yaml:3`` or
    ``override 'optimizer.lr=1e-3'``. A key that has the name of a dict method is reached with
    brackets only. What is shown or written has secrets replaced by ``***``.
    """

    __slots__ = ()

    def __init__(self, data: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /, **more: Any) -> None:
        super().__init__()
        self.update(data, **more)
        places: Mapping[Any, str] = getattr(data, "places", {})
        self.places.update({key: place for key, place in places.items() if key not in more})

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        overrides: Iterable[str] = (),
        allow: Iterable[str] = (),
    ) -> Self:
        """Read a YAML, TOML, JSON or Python file, with what it inherits.

        Args:
            overrides: ``key.key=value``, the value read as YAML, applied in this order.
            allow: Prefixes of dotted names that `type` may have in a data file, such as
                ``("my_package",)``. They are imported, so name only what you trust. A Python
                file is code already and may name anything.

        Raises:
            ConfigError: with the file and line at fault.
        """
        return cls(load(path, overrides, allow))

    def redacted(self) -> "Config":
        """A copy with ``***`` in place of passwords, keys and tokens, also those inside URLs."""
        return Config(redacted(self))

    def to_yaml(self, *, secrets: bool = False) -> str:
        """As YAML, which `load` reads back to the same data. Objects become text."""
        return yaml.write(self._plain(secrets))

    def dump(self, path: str | os.PathLike[str], *, secrets: bool = False) -> None:
        """Write a ``.yaml``, ``.yml`` or ``.json`` file."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".yaml", ".yml", ".json"):
            raise ConfigError(
                f"a config is written as .yaml or .json, not as {suffix!r}; rename {str(path)!r}"
            )
        if suffix == ".json":
            text = json.dumps(self._plain(secrets), indent=2) + "\n"
        else:
            text = self.to_yaml(secrets=secrets)
        Path(path).write_text(text, encoding="utf-8")

    def pretty(self) -> str:
        """One line for each value, as an override sets it, with the place that it comes from."""
        rows = list(_rows(self.redacted(), ""))
        width = min(max((len(row) for row, _ in rows), default=0), 60)
        return "\n".join(f"{row:{width}}  # {place}" if place else row for row, place in rows)

    def copy(self) -> Self:
        """A copy whose nested dicts and lists are its own."""
        return type(self)(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, _wrapped(value))
        # Set by code: where the old value was written says nothing about the new one.
        self.places.pop(key, None)

    def update(self, data: Any = (), /, **more: Any) -> None:
        for key, value in dict(data, **more).items():
            self[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        # Python itself asks for many such names.
        hint = "" if name.startswith("__") else f"; {nearest(name, map(str, self))}"
        raise AttributeError(f"config has no key {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "places":
            super().__setattr__(name, value)
        elif hasattr(type(self), name):
            raise AttributeError(f"{name!r} is a method of Config; write config[{name!r}] = ...")
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"config has no key {name!r}; {nearest(name, map(str, self))}")
        del self[name]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As it stands for dicts, copying would set the places first and lose them to the items.
        return _rebuilt, (type(self), dict(self), self.places)

    def __repr__(self) -> str:
        # Tracebacks and logs show it.
        return f"Config({self._plain(secrets=False)!r})"

    def _plain(self, secrets: bool) -> Any:
        # Made plain first: an object may show a secret only once it is text.
        return plain(self) if secrets else plain(redacted(plain(self)))


def _rebuilt(kind: type[Config], data: dict[Any, Any], places: dict[Any, str]) -> Config:
    made = kind(data)
    made.places.update(places)
    return made


def _wrapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config(value)
    if isinstance(value, list):
        return [_wrapped(item) for item in value]
    return tuple(_wrapped(item) for item in value) if type(value) is tuple else value


def _rows(value: Any, name: str, place: str = "") -> Iterator[tuple[str, str]]:
    """``a.b=1`` and its place, for every value in which there is no further mapping."""
    nested = isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)
    if isinstance(value, PlacedDict) and value:
        for key, item in value.items():
            yield from _rows(item, f"{name}.{key}" if name else str(key), value.places.get(key, place))
    elif nested:
        for index, item in enumerate(value):
            yield from _rows(item, f"{name}.{index}", place)
    elif name:
        yield f"{name}={yaml.write_value(plain(value))}", place
