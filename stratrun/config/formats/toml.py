"""TOML, with the line of each key."""

import re
import tomllib
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from stratrun.config.placed import Path, placed
from stratrun.errors import ConfigError

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' + r"|'''.*?'{3,5}" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'"
    r"|\#[^\n]*|\n|[\[\]{},=.]|[^\s\[\]{},=.\#\"']+",
    re.DOTALL,
)


def read(text: str, name: str) -> Any:
    """The data of a TOML document, its tables as PlacedDicts with ``name:line``.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The exception tells the line in its text only.
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(f"{name}{f':{line[1]}' if line else ''}: not TOML: {error}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read as TOML: {error}") from error
    lines = _Lines(text.replace("\r\n", "\n")).found()
    return placed(_as_text(data), lambda path: f"{name}:{lines[path]}" if path in lines else None)


def _as_text(value: Any) -> Any:
    """Dates as text, as in the other formats."""
    if isinstance(value, Mapping):
        return {key: _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else value


class _Lines:
    """Where each key of a valid document is. The standard parser does not tell."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        line = 1
        for token in _TOKEN.findall(text):
            if not token.startswith("#"):
                self._tokens.append((token, line))
            line += token.count("\n")
        self._tokens.append(("", line))
        self._next = 0
        self._lines: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}

    def found(self) -> dict[Path, int]:
        table: Path = ()
        while self._peek():
            if self._peek() == "\n":
                self._take()
            elif self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self) -> str:
        return self._tokens[self._next][0]

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][0]

    def _header(self) -> Path:
        opening = 0
        while self._peek() == "[":
            self._take()
            opening += 1
        line = self._tokens[self._next][1]
        table: Path = ()
        keys = self._key()
        for depth, key in enumerate(keys, start=1):
            table = (*table, key)
            self._lines.setdefault(table, line)
            if opening == 2 and depth == len(keys):
                self._sizes[table] = self._sizes.get(table, 0) + 1
            if table in self._sizes:
                table = (*table, self._sizes[table] - 1)
        while self._peek() == "]":
            self._take()
        return table

    def _key(self) -> list[str]:
        keys = []
        while self._peek() not in ("=", "]"):
            token = self._take()
            if token != ".":
                quoted = token[0] in "\"'"
                keys.append(next(iter(tomllib.loads(f"{token}=0"))) if quoted else token)
        return keys

    def _pair(self, table: Path) -> None:
        line = self._tokens[self._next][1]
        for key in self._key():
            table = (*table, key)
            self._lines.setdefault(table, line)
        self._take()
        self._value(table)

    def _value(self, path: Path) -> None:
        token = self._take()
        if token == "[":
            self._items(path)
        elif token == "{":
            while self._peek() != "}":
                if self._peek() in (",", "\n"):
                    self._take()
                else:
                    self._pair(path)
            self._take()
        else:
            # A number or date may be several tokens.
            while self._peek() not in ("\n", ",", "]", "}", ""):
                self._take()

    def _items(self, path: Path) -> None:
        index = 0
        while self._peek() != "]":
            if self._peek() == "\n":
                self._take()
            elif self._peek() == ",":
                self._take()
                index += 1
            else:
                self._value((*path, index))
        self._take()
