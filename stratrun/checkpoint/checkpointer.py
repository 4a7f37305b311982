"""Save and load a run, on all ranks together."""

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

from stratrun.checkpoint import layout
from stratrun.checkpoint.agreement import Alarm, decided_by_main, together
from stratrun.checkpoint.background import Background
from stratrun.checkpoint.contribution import Contribution, Target, contribution
from stratrun.checkpoint.discovery import committed_steps, look_into
from stratrun.checkpoint.division import Division
from stratrun.checkpoint.holdings import Holdings
from stratrun.checkpoint.loading import load_exactly, load_newest
from stratrun.checkpoint.reader import Loaded, Room
from stratrun.checkpoint.staging import Staging
from stratrun.distributed.collectives import Collectives
from stratrun.errors import CheckpointError, ConfigError
from stratrun.spread import local_part
from stratrun.storage import Folder

_LOG = logging.getLogger("stratrun.checkpoint")


class Checkpointer:
    """The checkpoints of one run, in a folder of their own.

    Every rank makes every call, in the same order; what fails on one of them is raised on all.
    Loading from the folder makes the run that is found there this one, so that retention covers
    what it saved before.
    """

    def __init__(
        self,
        folder: Folder,
        collectives: Collectives,
        *,
        run_id: str,
        saving: Collectives | None = None,
        deadline: float = 600.0,
        division: Division | None = None,
    ) -> None:
        """
        Args:
            saving: Exchanges for saves alone, which need them to go on beside the run.
            deadline: Seconds that a save may take.
            division: How the run is divided over its ranks; by default each has samples of its own.
        """
        if not layout.RUN_ID.fullmatch(run_id):
            raise ConfigError(f"run_id={run_id!r} must be 1 to 64 letters, digits, '-' or '_'")
        self.folder = folder
        self.run_id: str = run_id
        self._ranks = collectives
        self._division = division or Division(collectives.world_size)
        self._noted = self._division.noted()
        self._background = Background(collectives if saving is None else saving, deadline)
        self._staging = Staging()
        self._reserving: threading.Thread | None = None
        self._holdings = Holdings(folder)
        self._damaged: set[int] = set()

    def save(
        self,
        step: int,
        shared: Any,
        own: Any = None,
        *,
        meta: Mapping[str, Any] | None = None,
        keep_last: int | None = None,
        protect: Collection[int] = (),
        background: bool = False,
    ) -> str:
        """Write a checkpoint, unless this run has it already. It is not there at all when this raises.

        Args:
            step: Its place in the order of checkpoints; each state of a run needs another one.
            shared: State that is the same on all ranks. The main rank's is written, and of tensors that
                are sharded each rank's part.
            own: State of this rank. Both may be functions that give it, called in this order: what
                fails in them on one rank is raised on all.
            meta: Plain values that describe the run.
            keep_last, protect: See `apply_retention`, which follows.
            background: Return once the state is copied to host memory, and write beside what follows; the
                next save waits for this one. What fails is raised by `raise_if_failed`, by `wait`, or
                by the next save. Call `wait` before the process ends.

        Returns:
            The URL of the checkpoint.

        Raises:
            CheckpointError: it could not be written, on whichever rank.
            PeerError: a rank is gone, or did not come in time.
        """
        target = Target(self.folder, step, self.run_id)
        alarm = self._background.clear(str(target))
        ranks = self._background.ranks
        take = self._staging.take if background else _held
        brought, staged, error = _brought(partial(contribution, ranks, shared, own, meta, self._noted), take)
        ready = partial(together, ranks, str(target), partial(_ready, error, self._staging))
        if error is not None and ranks.world_size == 1:
            ready()  # nobody else has to hear of it first

        def work() -> None:
            ready()
            self._write(target, brought, staged, alarm)
            self.apply_retention(keep_last, protect)

        self._background.begin(work, alarm)
        if not background:
            self.wait()
        return self.folder.child(layout.name_of(step)).url

    def wait(self) -> None:
        """Return once the save under way is committed; raise if it failed."""
        self._background.wait()

    def raise_if_failed(self, iteration: int) -> None:
        """Raise, on all ranks at the same iteration, what a save in the background failed with."""
        self._background.raise_if_failed(iteration)

    def close(self) -> None:
        """Give up the memory and the exchanges, once the save under way has ended; raise if it failed."""
        try:
            self.wait()
        finally:
            if self._reserving is not None:
                self._reserving.join()
            self._staging.release()
            saving = self._background.ranks
            # What hangs in an exchange would take the process with it if the group went away.
            if saving is not self._ranks and not self._background.is_stuck():
                saving.close()

    def reserve(self, size: int, *, pinned: bool = False) -> None:
        """Begin to make the memory for copies of so many bytes, which the first save else has to wait for.

        Args:
            pinned: For tensors of a CUDA device.
        """
        # Not a daemon: torch aborts a process that ends while a thread of it is in there.
        work = partial(_reserve, self._staging, size, pinned)
        self._reserving = threading.Thread(target=work, name="stratrun-reserve")
        self._reserving.start()

    def load(
        self,
        which: Literal["latest"] | int | str | os.PathLike[str] | Folder = "latest",
        room: Room | None = None,
    ) -> Loaded:
        """Read a checkpoint, every byte verified, into host memory.

        Args:
            which: A step of this folder; a checkpoint, or a folder of them, by path or URL;
                ``"latest"`` for the newest of this folder. In a folder of them, a damaged one is
                passed over for the next older one, and the reason is logged.
            room: Where tensors are read to that this rank is to have a part of only. See
                `StoredCheckpoint.read`.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointCorruptedError: there are, and each is damaged; or the one named is.
            CheckpointError: one could not be read, on whichever rank.
        """
        start = _chosen(which, self.folder)
        path, steps = decided_by_main(self._ranks, f"looking into {start}", partial(look_into, start))
        folder = start.child(path) if path else start
        if steps is None:
            return self._adopt(load_exactly(self._ranks, folder, self._division, room), folder.parent)
        return self._adopt(load_newest(self._ranks, folder, steps, self._division, room), folder)

    def claim(self, after: int = -1) -> None:
        """Refuse to train where later checkpoints would be in the way, before any work is lost.

        Args:
            after: The step that the run goes on from; -1 for one that starts anew.

        Raises:
            CheckpointError: the folder holds later steps, and they are not known to be damaged.
        """
        steps = decided_by_main(self._ranks, "looking for checkpoints", lambda: committed_steps(self.folder))
        later = [str(step) for step in steps if step > after and step not in self._damaged]
        if later:
            start = "the start" if after < 0 else f"step {after}"
            raise CheckpointError(
                f"{self.folder} already holds checkpoints of steps after {start}: {', '.join(later[-5:])}; "
                "resume=True goes on from the newest, another work_dir leaves them alone"
            )
        if after >= 0 and self._ranks.is_main:
            self._holdings.tidy(self.run_id)

    def apply_retention(self, keep_last: int | None, protect: Collection[int] = ()) -> None:
        """Remove this run's checkpoints but the newest `keep_last` and those of the steps `protect`.

        What cannot be removed is logged and left: a full run matters more than a tidy folder.

        Args:
            keep_last: None removes nothing.
        """
        if self._ranks.is_main and keep_last is not None:
            self._holdings.thin_out(self.run_id, keep_last, protect)

    def _write(
        self, target: Target, brought: Contribution, staged: Mapping[str, Tensor], alarm: Alarm
    ) -> None:
        # Here, as it takes a second, which only a run that saves is to spend.
        from stratrun.checkpoint.saving import write

        ranks, holdings = self._background.ranks, self._holdings

        def begin() -> str | None:
            return holdings.make_room(target.step, target.run_id) if ranks.is_main else None

        if not write(ranks, target, begin, brought, staged, alarm):
            _LOG.info("%s is there already", self.folder.child(layout.name_of(target.step)))
        holdings.add(target.step, target.run_id)

    def _adopt(self, loaded: Loaded, folder: Folder) -> Loaded:
        if folder == self.folder:
            self.run_id = loaded.meta["run_id"]
            self._damaged.update(loaded.passed_over)
        return loaded


def _chosen(which: Any, folder: Folder) -> Folder:
    if isinstance(which, Folder):
        return which
    if isinstance(which, int):
        return folder.child(layout.name_of(which))
    return folder if which == "latest" else Folder(which)


def _brought(
    collect: Callable[[], Contribution], take: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> tuple[Contribution, Mapping[str, Tensor], Exception | None]:
    """What this rank brings, and its tensors as they are now; or why some of it cannot be saved."""
    try:
        brought = collect()
        return brought, take(brought.tensors), None
    except Exception as error:
        return Contribution(), {}, error


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors themselves; of those spread over ranks the part held here, as a copy would be."""
    return {name: local_part(tensor) for name, tensor in tensors.items()}


def _ready(error: Exception | None, staging: Staging) -> None:
    """Raise what went wrong with what this rank brings, or return when its copies are complete."""
    if error is not None:
        raise error
    staging.wait()


def _reserve(staging: Staging, size: int, pinned: bool) -> None:
    try:
        staging.reserve(size, pinned=pinned)
    except Exception as error:
        _LOG.info("no memory was made ahead for copies of %d bytes: %s", size, error)
