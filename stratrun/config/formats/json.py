"""JSON, with the line of each key."""

import json
import re
from typing import Any

from stratrun.config.placed import Path, placed
from stratrun.errors import ConfigError
from stratrun.problems import part

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:]|\n')


def read(text: str, name: str) -> Any:
    """The data of a JSON document, its mappings as PlacedDicts with ``name:line``.

    Raises:
        ConfigError: it is no JSON, or a key comes twice.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read as JSON: {error}") from error
    lines = _lines(text, name)
    return placed(data, lambda path: f"{name}:{lines[path]}")


def _lines(text: str, name: str) -> dict[Path, int]:
    """Where each key of a valid document is. The standard parser does not tell."""
    lines: dict[Path, int] = {}
    path: list[str | int] = []
    kinds: list[str] = []
    line, word = 1, ""
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token in "{[":
            kinds.append(token)
            path.append(0 if token == "[" else "")
        elif token in "}]":
            kinds.pop()
            path.pop()
        elif token == "," and kinds[-1] == "[":
            path[-1] = int(path[-1]) + 1
        elif token == ":":
            path[-1] = json.loads(word)
            where = tuple(path)
            with part():
                if where in lines:
                    raise ConfigError(
                        f"{name}:{line}: {path[-1]!r} is there already ({name}:{lines[where]}); "
                        "keep one of them"
                    )
                lines[where] = line
        else:
            word = token
    return lines
