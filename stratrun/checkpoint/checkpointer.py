"""Save and load a run, on all ranks together."""

import logging
import os
import re
from collections.abc import Collection
from typing import Any, Literal

from stratrun.checkpoint import layout
from stratrun.checkpoint.agreement import decided_by_main, together
from stratrun.checkpoint.discovery import committed_steps, look_into
from stratrun.checkpoint.layout import Manifest
from stratrun.checkpoint.loading import load_exactly, load_newest
from stratrun.checkpoint.reader import Loaded, StoredCheckpoint, damage
from stratrun.checkpoint.retention import superfluous
from stratrun.checkpoint.tree import flatten
from stratrun.checkpoint.writer import Attempt, discard, leftovers, new_token
from stratrun.distributed.collectives import Collectives
from stratrun.errors import CheckpointError, ConfigError, StratrunError
from stratrun.storage import Folder

_LOG = logging.getLogger("stratrun.checkpoint")
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Checkpointer:
    """The checkpoints of one run, in a folder of their own.

    Every rank makes every call, in the same order; what fails on one of them is raised on all.
    Loading from the folder makes the run that is found there this one, so that retention covers
    what it saved before.
    """

    def __init__(self, folder: Folder, collectives: Collectives, *, run_id: str) -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigError(f"run_id={run_id!r} must be 1 to 64 letters, digits, '-' or '_'")
        self.folder = folder
        self.run_id = run_id
        self._ranks = collectives
        self._owners: dict[int, str | None] = {}
        self._saved: set[int] = set()
        self._damaged: set[int] = set()

    def save(self, step: int, shared: Any, own: Any = None, *, meta: dict[str, Any] | None = None) -> str:
        """Write a checkpoint. It exists when this returns, and not at all when it raises.

        A step that this run has saved already is left as it is.

        Args:
            step: Its place in the order of checkpoints; each state of a run needs another one.
            shared: State that is the same on all ranks; only the main rank's is written.
            own: State of this rank.
            meta: Plain values that describe the run.

        Returns:
            The URL of the checkpoint.

        Raises:
            CheckpointError: it could not be written, on whichever rank.
        """
        what = f"saving step {step} to {self.folder}"
        url = self.folder.child(layout.name_of(step)).url
        token = decided_by_main(self._ranks, what, lambda: self._prepare(step))
        if token is None:
            _LOG.info("%s is there already", url)
            return url
        attempt = Attempt(self.folder, step, self.run_id, token)
        try:
            part, state = together(self._ranks, what, lambda: self._write(attempt, shared, own, meta))
            parts = self._ranks.gather_to_main(part)
            together(self._ranks, what, lambda: None if parts is None else _commit(attempt, parts, state))
        except Exception:
            self._clean_up(attempt)
            raise
        self._saved.add(step)
        self._owners[step] = self.run_id
        return url

    def load(self, which: Literal["latest"] | int | str | os.PathLike[str] | Folder = "latest") -> Loaded:
        """Read a checkpoint, every byte verified, into host memory.

        Args:
            which: A step of this folder; a checkpoint, or a folder of them, by path or URL;
                ``"latest"`` for the newest of this folder. In a folder of them, a damaged one is
                passed over for the next older one, and the reason is logged.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointCorruptedError: there are, and each is damaged; or the one named is.
            CheckpointError: one could not be read, on whichever rank.
        """
        start = self._start(which)
        path, steps = decided_by_main(self._ranks, f"looking into {start}", lambda: look_into(start))
        folder = start.child(path) if path else start
        if steps is None:
            return self._adopt(load_exactly(self._ranks, folder), folder.parent)
        return self._adopt(load_newest(self._ranks, folder, steps), folder)

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

    def apply_retention(self, keep_last: int | None, protect: Collection[int] = ()) -> None:
        """Remove this run's checkpoints but the newest `keep_last` and those of the steps `protect`.

        What cannot be removed is logged and left: a full run matters more than a tidy folder.
        """
        if not self._ranks.is_main or keep_last is None:
            return
        try:
            own = [step for step in committed_steps(self.folder) if self._owner(step) == self.run_id]
            for step in superfluous(own, keep_last, protect):
                discard(self.folder, layout.name_of(step), self.run_id)
        except Exception as error:  # not all stores raise OSError, and the other ranks go on
            _LOG.warning("an old checkpoint in %s was not removed: %s", self.folder, error)

    def _prepare(self, step: int) -> str | None:
        """Make room for a step. None when it is there already, intact and of this run."""
        name = layout.name_of(step)
        self.folder.make()
        for old in leftovers(self.folder, self.run_id):
            self.folder.remove(old)
        if not self.folder.exists(name):
            return new_token()
        if step not in self._saved and not self._is_intact(name):
            discard(self.folder, name, self.run_id)
            return new_token()
        if self._owner(step) == self.run_id:
            return None
        raise CheckpointError(
            f"{name} is there already, saved by the other run {self._owner(step)!r}; choose another work_dir"
        )

    def _is_intact(self, name: str) -> bool:
        try:
            StoredCheckpoint(self.folder.child(name)).verify()
        except (CheckpointError, OSError) as error:
            reason = damage(error)
            if reason is None:
                raise
            _LOG.warning("%s is written anew: %s", self.folder.child(name), reason)
            return False
        return True

    def _write(self, attempt: Attempt, shared: Any, own: Any, meta: Any) -> tuple[Any, Any]:
        rank, world_size = self._ranks.rank, self._ranks.world_size
        skeleton, tensors = flatten(own, prefix=f"rank-{rank:05d}/")
        state: Any = None
        if self._ranks.is_main:
            common, shared_tensors = flatten(shared)
            described, unexpected = flatten(meta or {})
            if unexpected:
                raise CheckpointError(f"meta must hold plain values; {next(iter(unexpected))!r} is a tensor")
            clash = [name for name in shared_tensors if name.startswith("rank-")]
            if clash:
                raise CheckpointError(f"no shared state may be called {clash[0].partition('/')[0]!r}")
            tensors, state = {**shared_tensors, **tensors}, {"shared": common, "meta": described}
        from stratrun.checkpoint.storage_writer import SnapshotPlanner

        writer, planner = attempt.writer(rank, world_size, skeleton), SnapshotPlanner(tensors)
        plan = writer.prepare_local_plan(planner.create_local_plan())
        return (plan, writer.write_data(plan, planner).wait(), skeleton), state

    def _clean_up(self, attempt: Attempt) -> None:
        if self._ranks.is_main:
            try:
                attempt.abandon()
            except OSError as error:
                _LOG.warning("an unfinished checkpoint in %s was not removed: %s", self.folder, error)

    def _start(self, which: Any) -> Folder:
        if isinstance(which, Folder):
            return which
        if isinstance(which, int):
            return self.folder.child(layout.name_of(which))
        return self.folder if which == "latest" else Folder(which)

    def _adopt(self, loaded: Loaded, folder: Folder) -> Loaded:
        if folder == self.folder:
            self.run_id = loaded.meta["run_id"]
            self._damaged.update(loaded.passed_over)
        return loaded

    def _owner(self, step: int) -> str | None:
        if step not in self._owners:
            manifest = f"{layout.name_of(step)}/{layout.MANIFEST}"
            try:
                data = self.folder.read_bytes(manifest, layout.MANIFEST_LIMIT)
                self._owners[step] = Manifest.parse(data).run_id
            except (StratrunError, FileNotFoundError):
                self._owners[step] = None
        return self._owners[step]


def _commit(attempt: Attempt, parts: list[Any], state: Any) -> None:
    from stratrun.checkpoint.storage_writer import SnapshotPlanner

    _, metadata = SnapshotPlanner({}).create_global_plan([plan for plan, _, _ in parts])
    owns = [own for _, _, own in parts]
    attempt.commit(metadata, [results for _, results, _ in parts], {**state, "ranks": owns})
