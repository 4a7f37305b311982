"""The checkpoints that lie in a folder: whose they are, which may go, where a new one finds room."""

import logging
from collections.abc import Collection

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.opening import owner_of
from stratrun.checkpoint.reader import StoredCheckpoint, damage
from stratrun.checkpoint.remains import discard_own, leftovers, make_way
from stratrun.checkpoint.retention import superfluous
from stratrun.checkpoint.writer import new_token
from stratrun.errors import CheckpointError
from stratrun.storage import Folder

_LOG = logging.getLogger("stratrun.checkpoint")


class Holdings:
    """What one process, the main one, knows of a folder of checkpoints, and does to it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._owners: dict[int, str | None] = {}
        self._saved: set[int] = set()
        self._tidy = False

    def add(self, step: int, run_id: str) -> None:
        """Take note of one that was saved by this process."""
        self._saved.add(step)
        self._owners[step] = run_id

    def make_room(self, step: int, run_id: str) -> str | None:
        """Have nothing in the way of a new checkpoint.

        Returns:
            A name for the attempt; None when the step is there already, intact and of this run.

        Raises:
            CheckpointError: it is there, whole or not, and of another run.
        """
        name = layout.name_of(step)
        self._folder.make()
        self._remove_leftovers(run_id)
        if not self._folder.exists(name):
            return new_token()
        if step not in self._saved and not self._is_intact(name):
            make_way(self._folder, name, run_id)
            return new_token()
        if self._owner(step) == run_id:
            return None
        raise CheckpointError(
            f"{name} is there already, saved by the other run {self._owner(step)!r}; choose another work_dir"
        )

    def tidy(self, run_id: str) -> None:
        """Remove what was left by attempts of a run that were killed: it may have nothing more to save."""
        try:
            self._remove_leftovers(run_id)
        except Exception as error:  # see thin_out
            _LOG.warning("what a killed process left in %s was not removed: %s", self._folder, error)

    def thin_out(self, run_id: str, keep_last: int, protect: Collection[int]) -> None:
        """Remove checkpoints of a run but those to be kept. See `Checkpointer.apply_retention`."""
        try:
            own = [step for step in committed_steps(self._folder) if self._owner(step) == run_id]
            for step in superfluous(own, keep_last, protect):
                discard_own(self._folder, layout.name_of(step), run_id)
        except Exception as error:  # not all stores raise OSError, and the other ranks go on
            _LOG.warning("an old checkpoint in %s was not removed: %s", self._folder, error)

    def _remove_leftovers(self, run_id: str) -> None:
        if self._tidy:
            return
        # Once: later ones may be those of a process that still goes on with this run, forgotten
        # by its launcher.
        self._tidy = True
        for old in leftovers(self._folder, run_id):
            if self._folder.is_local:
                self._folder.remove(old)
            else:
                discard_own(self._folder, old, run_id)

    def _is_intact(self, name: str) -> bool:
        try:
            StoredCheckpoint(self._folder.child(name)).verify()
        except (CheckpointError, OSError) as error:
            reason = damage(error)
            if reason is None:
                raise
            _LOG.warning("%s is not whole: %s", self._folder.child(name), reason)
            return False
        return True

    def _owner(self, step: int) -> str | None:
        if step not in self._owners:
            self._owners[step] = owner_of(self._folder.child(layout.name_of(step)))
        return self._owners[step]
