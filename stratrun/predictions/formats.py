"""Which kinds of files predictions can be written to. Imports none of them."""

from importlib import import_module
from typing import Any, Protocol

from stratrun.errors import ConfigError, nearest

FORMATS = {"jsonl": ("jsonl", "Lines"), "safetensors": ("tensors", "Safetensors"), "npz": ("tensors", "Npz")}


class Shard(Protocol):
    """Predictions that are to become one file."""

    suffix: str
    size: int
    """Bytes that they take, roughly."""

    def __len__(self) -> int: ...
    def add(self, prediction: Any) -> None: ...
    def encode(self, order: list[int]) -> bytes: ...
    @staticmethod
    def decode(data: bytes, where: str) -> list[Any]: ...


def check_format(name: Any) -> None:
    """Raises ConfigError for a format that there is not."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(f"format={name!r} is unknown; {nearest(str(name), FORMATS)}")


def format_called(name: str) -> type[Shard]:
    """
    Raises:
        ConfigError: there is none of that name.
    """
    check_format(name)
    module, kind = FORMATS[name]
    found: type[Shard] = getattr(import_module(f"stratrun.predictions.{module}"), kind)
    return found
