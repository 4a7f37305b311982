"""Whether a hook does its work beside a run, and only that."""

import shutil
import tempfile
from collections.abc import Collection
from typing import Any

import torch

from stratrun.errors import ConfigError
from stratrun.hooks import POINTS, Hook
from stratrun.registry import HOOKS
from stratrun.testing import job
from stratrun.testing.compare import differences
from stratrun.testing.plain_state import differing, refuse_unplain
from stratrun.testing.ranks import shared_ranks
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import alone
from stratrun.testing.spec import portable, title
from stratrun.testing.words import check_words

CLAIMS = {
    "words": "it says nothing of the layers below",
    "points": "each of its methods is called at a point of a run",
    "training": "training goes on with it as without it",
    "waiting": "it does not read a tensor in every iteration, which would wait for the device",
    "traffic": "it does not exchange anything in every iteration",
    "state": "its state can be kept in a checkpoint, and a new one takes it back",
    "ranks": "on two ranks it has the same state on both, and that of one process",
    "resuming": "in a run that is stopped and resumed it comes to the state of one that was not",
}


def check_hook(
    hook: Any,
    *,
    form: job.Form = job.nothing,
    changes_training: bool = False,
    allow: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Report:
    """Train a small model with a hook and without it, in one process and on two ranks, stopped and resumed.

    Args:
        hook: A name, a class, or a dict with `type` and arguments; each run makes one of its own.
        form: Module-level function; returns arguments of the Runner that the hook needs.
        changes_training: Whether the weights are meant to be others with it.
        allow: Words that the hook may use, as they mean something else there.
        only: Names of the checks to run, of `hook.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
    """
    if isinstance(hook, Hook):
        raise ConfigError(f"hook={hook!r} is an object; give its class, or dict(type=TheClass, option=...)")
    entry, _ = HOOKS.check(hook, where="hook")
    trial = _Trial(portable(HOOKS, hook), entry, form, changes_training)
    checks = Checks(f"hook={title(hook)}", CLAIMS, only)
    methods = {
        "words": lambda: check_words(entry, allow) if isinstance(entry, type) else None,
        "points": trial.points,
        "training": trial.training,
        "waiting": trial.waiting,
        "traffic": trial.traffic,
        "state": trial.state,
        "ranks": trial.on_ranks,
        "resuming": trial.resuming,
    }
    try:
        for name, claim in CLAIMS.items():
            checks.run(name, claim, methods[name])
    finally:
        trial.close()
    return checks.done()


class _Trial:
    """The runs of one hook. A run that several checks look at is made once."""

    def __init__(self, spec: Any, entry: Any, form: job.Form, changes_training: bool) -> None:
        self.spec, self.entry, self.form = spec, entry, form
        self.changes_training = changes_training
        self.folder = tempfile.mkdtemp(prefix="stratrun-check-")
        self.ranks = shared_ranks(2)
        self._known: dict[tuple[bool, bool], list[job.Done]] = {}

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def done(self, *, spread: bool = False, without: bool = False) -> list[job.Done]:
        key = spread, without
        if key not in self._known:
            name = f"{self.folder}/{'spread' if spread else 'alone'}-{'without' if without else 'with'}"
            self._known[key] = self.run(name, spread=spread, hooks=() if without else (self.spec,))
        return self._known[key]

    def run(self, name: str, *, spread: bool = False, **options: Any) -> list[job.Done]:
        changes = options.pop("changes", {})
        if spread:
            return self.ranks(job.on_rank, self.form, {"strategy": "ddp", **changes}, name, **options)
        return [alone(job.run, self.form, changes, name, **options)]

    # -- the checks

    def points(self) -> str:
        (done,) = self.done()
        if done.told:
            raise Wrong("\n".join(done.told))
        names = {point for point in done.points if callable(getattr(self.entry, point, None))}
        if not names:
            others = [p for p in POINTS if _is_of_others(p) and callable(getattr(self.entry, p, None))]
            if others:
                raise NotChecked(f"its points are of other jobs than training: {', '.join(others)}")
            raise Wrong(
                "no method of it was called", "its methods are named after points: after_train_iter, ..."
            )
        return ", ".join(sorted(names))

    def training(self) -> None:
        (seen,), (other,) = self.done(), self.done(without=True)
        if seen.counters != other.counters:
            raise Wrong(f"the counters end at {seen.counters} instead of {other.counters}")
        if self.changes_training:
            return
        if wrong := differences(seen.weights, other.weights, 0.0):
            raise Wrong(wrong, "say changes_training=True if that is what it is for")
        if not torch.equal(seen.drawn, other.drawn):
            raise Wrong(
                "it draws from torch's generator, so that what follows is another run with it",
                "give it a torch.Generator of its own",
            )

    def waiting(self) -> None:
        (seen,), (other,) = self.done(), self.done(without=True)
        if extra := _often([a - b for a, b in zip(seen.reads, other.reads, strict=False)]):
            raise Wrong(
                f"it reads {extra} tensors' values in each iteration",
                "keep tensors as tensors (no float(), .item(), if tensor:) until a log point",
            )

    def traffic(self) -> None:
        for seen, other in zip(self.done(spread=True), self.done(spread=True, without=True), strict=True):
            more = [sum((a - b).values()) for a, b in zip(seen.exchanges, other.exchanges, strict=False)]
            if extra := _often(more):
                raise Wrong(
                    f"it makes {extra} exchanges between processes in each iteration",
                    "keep values here and exchange them once, at the end of an epoch",
                )

    def state(self) -> str:
        (seen,) = self.done()
        (state,) = seen.states
        refuse_unplain(state, "state_dict()")
        again: Hook = HOOKS.build(self.spec)
        again.load_state_dict(state)
        if wrong := differing(again.state_dict(), state):
            raise Wrong(
                f"after load_state_dict() {wrong}", "load_state_dict() takes back all that state_dict() has"
            )
        return ", ".join(state) or "it has none"

    def on_ranks(self) -> None:
        first, second = self.done(spread=True)
        (one,) = self.done()
        hint = "what each process has of its own samples is put together by runner.engine.mean() or collect()"
        if wrong := differing(second.states, first.states, "state_dict() on rank 1 and on rank 0"):
            raise Wrong(wrong.replace("[0]", "", 1), hint)
        if wrong := differing(first.states, one.states, "state_dict() on two ranks and in one process", 1e-4):
            raise Wrong(wrong.replace("[0]", "", 1), hint)
        if wrong := differences(second.weights, first.weights, 0.0):
            raise Wrong(f"the weights are not the same on both: {wrong}")

    def resuming(self) -> None:
        (whole,) = self.done()
        target, hooks = f"{self.folder}/resumed", (self.spec,)
        self.run(target, hooks=hooks, stop_at=job.STOP, save=True)
        (after,) = self.run(target, hooks=hooks, changes={"resume": True})
        if wrong := differences(after.weights, whole.weights, 0.0):
            raise Wrong(wrong)
        if wrong := differing(after.states, whole.states, "state_dict() of a resumed and of a whole run"):
            raise Wrong(
                wrong.replace("[0]", "", 1),
                "state_dict() has all that the hook needs to go on, and nothing that tells of the process",
            )
        if _late(after) != _late(whole):
            # What tells of time differs in each run.
            (again,) = self.run(f"{self.folder}/again", hooks=hooks)
            if _late(again) == _late(whole):
                raise Wrong(
                    "what it logs after a stop is not what it logs without one",
                    "state_dict() and load_state_dict() have all that the hook needs to go on",
                )


def _is_of_others(point: str) -> bool:
    return any(job in ("test", "predict") for job in point.split("_"))


def _late(done: job.Done) -> list[tuple[int, dict[str, Any]]]:
    """What was logged after the iteration that runs are stopped at."""
    return [entry for entry in done.logged if entry[0] > job.STOP]


def _often(extra: list[int]) -> int:
    """How many in an iteration, if it is so in most of them."""
    return max(extra) if sum(number > 0 for number in extra) > len(extra) / 2 else 0
