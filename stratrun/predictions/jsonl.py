"""Predictions as lines of JSON."""

import json
from typing import Any

from stratrun.data.json_lines import json_line
from stratrun.errors import DataError


class Lines:
    """Predictions of one file, as text from the moment they come."""

    suffix = ".jsonl"

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.size: int = 0

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, prediction: Any) -> None:
        encoded = f"{json_line(prediction)}\n".encode()
        self._lines.append(encoded)
        self.size += len(encoded)

    def encode(self, order: list[int]) -> bytes:
        """The bytes of the file, with the predictions in this order of their coming."""
        return b"".join(self._lines[i] for i in order)

    @staticmethod
    def decode(data: bytes, where: str) -> list[Any]:
        """
        Raises:
            DataError: these are no lines of JSON.
        """
        try:
            return [json.loads(one) for one in data.split(b"\n")[:-1]]
        except ValueError as error:
            raise DataError(f"{where} is no file of JSON lines: {error}") from error
