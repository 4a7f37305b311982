"""The loops of a run, and the data that they read."""

from __future__ import annotations

from typing import Any

from stratrun.data import Feed, build_feed
from stratrun.loops import BaseLoop
from stratrun.runner import parts
from stratrun.runner.developing import parse_dev
from stratrun.runner.form import Form, Job
from stratrun.runner.start import Started


class Fed:
    """Builds loops when they are first asked for, and loaders as their jobs limit them."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._loops: dict[str, BaseLoop] = {}
        # The job whose loop is being built, and what each loop has built of loaders.
        self._building = ""
        self._built: dict[str, list[Feed]] = {}

    @property
    def _started(self) -> Started:
        raise NotImplementedError

    @property
    def trial(self) -> bool:
        return parse_dev(self._form.dev_cfg).fast_dev_run > 0

    @property
    def train_dataloader(self) -> Feed | None:
        return getattr(self._loops.get("train"), "dataloader", None)

    def feeds(self, job: str) -> list[Feed]:
        """The loaders that a job reads."""
        jobs = ("train", "val") if job == "train" else (job,)
        loops = [self._loops[one] for one in jobs if one in self._loops]
        return [
            feed for loop in loops for feed in getattr(loop, "dataloaders", {"": loop.dataloader}).values()
        ]

    def build_dataloader(self, spec: Any, *, train: bool = False, name: str = "dataloader") -> Feed:
        """A loader of this run: batches arrive on the device, this process's share of them.

        Args:
            train: For training: shuffled by default, and the same number of batches everywhere.
            name: What it is called in messages.
        """
        limit = parse_dev(self._form.dev_cfg).limit("train" if train else self._building)
        feed = build_feed(spec, train=train, name=name, limit=limit, **self._started.feeding)
        if self._building and all(feed is not one for one in self._built[self._building]):
            self._built[self._building].append(feed)
        return feed

    def loop(self, job: Job) -> BaseLoop:
        """The loop of a job, built when it is first asked for."""
        if job not in self._loops:
            self._building, self._built[job] = job, []
            try:
                self._loops[job] = parts.build_loop(self, self._form, job)
            finally:
                self._building = ""
        return self._loops[job]

    def feeds_of(self, job: Job) -> list[Feed]:
        """All loaders that the loop of a job was built with, or has built for itself."""
        self.loop(job)
        return self._built[job]
