"""Names that users give, as places to which things are written."""

import re
from typing import Any
from zlib import crc32

from stratrun.errors import ConfigError

_UNFIT = re.compile(r"[^\w.\- ]", re.ASCII)
_LONGEST = 200
"""Most file systems take 255 bytes, some of which loggers add."""


def safe_path(name: str) -> str:
    """A relative path of ASCII letters, digits, ``_``, ``.``, ``-`` and spaces, which leads nowhere else."""
    parts = [_shortened(_UNFIT.sub("_", part).strip()) for part in name.split("/")]
    return "/".join("_" if not part.strip(".") else part for part in parts if part) or "_"


def writable(text: Any, what: str) -> str:
    """A text that has bytes: half of a character, with which a text that was cut may end, has none.

    Raises:
        ConfigError: it is no text.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} is no text but a {type(text).__name__}; give a str")
    return text.encode("utf-8", "replace").decode()


def _shortened(part: str) -> str:
    if len(part) <= _LONGEST:
        return part
    return f"{part[: _LONGEST - 9]}-{crc32(part.encode()):08x}"
