"""The line in a notebook."""

from typing import Any

from IPython.display import display
from rich.text import Text

from stratrun.loggers.line import Line
from stratrun.loggers.text import Place

_WIDTH = 160


class NotebookLine(Line):
    """One output of the cell that is shown anew; results and notes follow below it, as text.

    A notebook keeps of it what was shown last, so a page that is made of the notebook has one line too.
    """

    # Each drawing is a message to whoever looks, maybe far away.
    every_seconds: float = 0.5

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._shown: Any = None

    def stop(self) -> None:
        if self._shown is not None:
            self._stage = ""
            self._draw()
            # What is trained next gets a line of its own.
            self._shown = None
        self._drawn = float("-inf")

    def _stay(self, text: Text) -> None:
        print(text.plain.rstrip(), flush=True)

    def _draw(self) -> None:
        data = {"text/plain": self._render(_WIDTH).plain.rstrip()}
        if self._shown is None:
            self._shown = display(data, raw=True, display_id=True)
        else:
            self._shown.update(data, raw=True)
