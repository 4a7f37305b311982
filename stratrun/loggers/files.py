import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stratrun.loggers.base import Logger
from stratrun.loggers.names import safe_path
from stratrun.loggers.record import Record
from stratrun.registry import LOGGERS

if TYPE_CHECKING:
    from PIL.Image import Image


@LOGGERS.register_module("files")
class FilesLogger(Logger):
    """Images, texts and files beside the logs; no values.

    ``images/<name>/<iteration>.png``, ``text/<name>/<iteration>.txt``, ``files/<name>``. One that is there
    already is written over.
    """

    def __init__(self) -> None:
        self._folder: Path

    def open(self, folder: Path) -> None:
        self._folder = folder

    def log(self, record: Record) -> None:
        """Values are written by others."""

    def log_image(self, name: str, image: "Image", step: int) -> None:
        image.save(self._place(f"images/{name}/{step:08d}.png"))

    def log_text(self, name: str, text: str, step: int) -> None:
        self._place(f"text/{name}/{step:08d}.txt").write_text(text, encoding="utf-8")

    def log_file(self, name: str, path: Path) -> None:
        if not path.resolve().is_relative_to(self._folder.resolve()):
            shutil.copy2(path, self._place(f"files/{name}"))

    def _place(self, name: str) -> Path:
        place = self._folder / safe_path(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place
