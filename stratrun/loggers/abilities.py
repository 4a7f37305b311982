"""What a logger may take beside values: each is there if the logger has a method of that name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from stratrun.loggers.base import Logger

Outcome = Literal["finished", "failed", "killed"]


class TakesImages(Protocol):
    """Keeps pictures."""

    def log_image(self, name: str, image: "Image", step: int) -> None:
        """
        Args:
            image: In mode ``L``, ``RGB`` or ``RGBA``. Others get the same one: copy what you change.
            step: Finished training iterations.
        """
        ...


class TakesText(Protocol):
    """Keeps texts."""

    def log_text(self, name: str, text: str, step: int) -> None: ...


class TakesFiles(Protocol):
    """Keeps files."""

    def log_file(self, name: str, path: Path) -> None:
        """
        Args:
            name: A relative path, under which to keep it.
        """
        ...


class KnowsRuns(Protocol):
    """Keeps apart what belongs to one run, however often that is started."""

    def start_run(self, run_id: str) -> None:
        """Say which run it is, before each job: a run that is gone on with has the same id again."""
        ...

    def end_run(self, outcome: Outcome) -> None:
        """Say how a job has ended. More may follow: another job of the same run."""
        ...


ABILITIES = ("log_image", "log_text", "log_file", "start_run", "end_run")


def verb_of(logger: "Logger", verb: str) -> Callable[..., Any] | None:
    """The method of that name, if the logger has it."""
    found = getattr(logger, verb, None)
    return found if callable(found) else None
