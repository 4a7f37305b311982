"""Loggers that do wrong with what they take beside values."""

from pathlib import Path

from tests.contracts.wrong_parts import Lines


class Led(Lines):
    """Writes a text wherever its name says."""

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._texts = folder

    def log_text(self, name: str, text: str, step: int) -> None:
        (self._texts / f"{name.partition('/')[0]}-{step}").write_text(text)
        if name.startswith(".."):
            (self._texts / "..").joinpath("elsewhere").write_text(text)
