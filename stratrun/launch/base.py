"""What is to be started, and the seam of those that start it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program, and how many processes are to run it.

    Args:
        target: The program as Python takes it: ``("train.py", "--lr", "1")`` or
            ``("-m", "stratrun", "train", "run.yaml")``.
        per_node: Processes on each machine; None for one on each GPU.
        nodes: Machines, which all start the same; None where the launcher is to find out.
        node: Which of them this one is, if that is to be told.
        rendezvous: HOST or HOST:PORT of the machine that all others ask who there is.
        run_id: What tells this run from others at the same place.
        restarts: How often all processes are started anew when one has failed.
        grace: Seconds that processes have after a signal before they are killed.
    """

    target: tuple[str, ...]
    per_node: int | None = None
    nodes: int | None = None
    node: int | None = None
    rendezvous: str | None = None
    run_id: str | None = None
    restarts: int = 0
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A command, and what is added to its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Launcher(ABC):
    """Says how a job is started here. Starts nothing itself: whoever asks becomes the command."""

    @abstractmethod
    def start(self, job: Job) -> Start:
        """
        Raises:
            ConfigError: what the job asks for cannot be had, or is not enough to go by.
        """
