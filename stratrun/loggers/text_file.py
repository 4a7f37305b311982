"""A text file that is only ever added to."""

import weakref
from pathlib import Path
from typing import TextIO


class TextFile:
    """Opened when first written, flushed with every write, closed at the latest when forgotten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: TextIO | None = None

    def write(self, text: str) -> None:
        if self._stream is None:
            self._stream = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
            weakref.finalize(self, self._stream.close)
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
