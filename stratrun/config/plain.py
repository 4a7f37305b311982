"""Any value as plain data, to be written down."""

import enum
import os
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Builtin dicts, lists and scalars only. A class becomes its dotted path; any other object a
    short text without its address, so that the same run always writes the same file."""
    if value is None or isinstance(value, enum.Enum):
        return None if value is None else plain(value.value)
    if isinstance(value, Mapping):
        return {key if type(key) is int else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value, key=repr)]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else _text(value)


def _text(value: Any) -> str:
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    name = f"<{kind.__module__}.{kind.__qualname__}>"
    try:
        text = repr(value)
    except Exception:
        return name
    return text if len(text) <= 80 and "\n" not in text and " at 0x" not in text else name
