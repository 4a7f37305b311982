"""Files to one tree of data: formats, inheritance, overrides."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stratrun.config.formats import json, python, toml, yaml
from stratrun.config.overrides import apply
from stratrun.config.placed import BASE, PlacedDict, merge
from stratrun.config.redaction import hide_in_text
from stratrun.config.vetting import refuse_inner_bases, vet
from stratrun.errors import ConfigError, nearest

MAX_BYTES = 512 * 1024
MAX_CHAIN = 32

_FORMATS: dict[str, Callable[[str, str], Any]] = {
    ".yaml": yaml.read,
    ".yml": yaml.read,
    ".toml": toml.read,
    ".json": json.read,
    ".py": python.read,
}
_ENDINGS = ", ".join(_FORMATS)


def load(path: str | os.PathLike[str], overrides: Iterable[str], allow: Iterable[str]) -> PlacedDict:
    """Read a config with all it inherits, and apply the overrides in their order."""
    allowed = (allow,) if isinstance(allow, str) else tuple(allow)
    tree = Files(allowed).load(os.path.expanduser(os.fspath(path)), ())
    return apply(tree, (overrides,) if isinstance(overrides, str) else overrides, allowed)


class Files:
    """The files of one config. Each is read once, however often it is inherited."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        self._allow = allow
        self._done: dict[str, PlacedDict] = {}
        self.read: list[PlacedDict] = []
        """What each says by itself, in the order in which they are merged."""

    def load(self, name: str, chain: tuple[str, ...], at: str = "") -> PlacedDict:
        """The merged data of a file; `chain` is who inherits it, the config itself first."""
        real = os.path.realpath(name)
        if real in [os.path.realpath(one) for one in chain]:
            raise ConfigError(f"{BASE} goes in a circle: {' -> '.join((*chain, name))}{at}")
        if len(chain) > MAX_CHAIN:
            raise ConfigError(f"{BASE} goes through more than {MAX_CHAIN} files{at}")
        if real not in self._done:
            self._done[real] = self._merged(name, chain, at)
        return self._done[real]

    def _merged(self, name: str, chain: tuple[str, ...], at: str) -> PlacedDict:
        own = self._read(name, at)
        tree, at = PlacedDict(), own.at(BASE)
        for base in _bases(own):
            path = os.path.normpath(os.path.join(os.path.dirname(name), os.path.expanduser(base)))
            if _suffix(base) == ".py" and _suffix(name) != ".py":
                raise ConfigError(
                    f"{BASE}: {base!r} is code, which a data config may not run; turn {name!r} into .py{at}"
                )
            tree = merge(tree, self.load(base if "://" in base else path, (*chain, name), at))
        own.pop(BASE, None)
        own.places.pop(BASE, None)
        self.read.append(own)
        return merge(tree, own)

    def _read(self, name: str, at: str) -> PlacedDict:
        if "://" in name:
            raise ConfigError(f"a config is read from local files only, not from {hide_in_text(name)!r}{at}")
        if _suffix(name) not in _FORMATS and not Path(name).is_dir():
            raise ConfigError(f"config {name!r}: its format is told by its ending; known: {_ENDINGS}{at}")
        text = _text(name, at)
        data = _FORMATS[_suffix(name)](text, name)
        if data is None:
            data = PlacedDict()
        if not isinstance(data, PlacedDict):
            raise ConfigError(
                f"{name}: a config is a mapping of names to values, not a {type(data).__name__}"
            )
        refuse_inner_bases(data)
        if _suffix(name) != ".py":
            vet(data, self._allow)
        return data


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _bases(own: PlacedDict) -> list[str]:
    value = own.get(BASE, [])
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list | tuple) or not all(
        isinstance(base, str) and base.isprintable() for base in bases
    ):
        raise ConfigError(
            f"{BASE} takes a file name or a list of them, got a {type(value).__name__}{own.at(BASE)}"
        )
    return list(bases)


def _text(name: str, at: str) -> str:
    path = Path(name)
    try:
        if not path.is_file():
            raise ConfigError(f"{_why_no_file(path)}{at}")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"config {name!r} cannot be read: {error.strerror}{at}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"config {name!r} is larger than {MAX_BYTES // 1024} KiB; keep data out of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {name!r} is not UTF-8 text: {error.reason}") from error


def _why_no_file(path: Path) -> str:
    if path.is_dir():
        return f"config {str(path)!r} is a folder; name a file in it"
    if path.exists():
        return f"config {str(path)!r} is no regular file"
    if not path.parent.is_dir():
        return f"no config {str(path)!r}: there is no folder {str(path.parent)!r}"
    beside = [one.name for one in path.parent.iterdir() if one.suffix.lower() in _FORMATS]
    return f"no config {str(path)!r}; {nearest(path.name, beside)}"
