"""Whether a loop orders a job rightly, wherever that job is done."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from stratrun.errors import ConfigError, nearest
from stratrun.loops import BaseLoop
from stratrun.registry import LOOPS
from stratrun.testing import job as jobs
from stratrun.testing.compare import differences
from stratrun.testing.plain_state import differing
from stratrun.testing.ranks import shared_ranks
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import alone
from stratrun.testing.spec import portable, title
from stratrun.testing.words import check_words

CLAIMS = {
    "words": "it says nothing of the layers below",
    "work": "it does its job: trains and counts, or measures or predicts",
    "points": "what begins ends, in the right order",
    "counters": "an iteration is counted before hooks hear that it is done",
    "ranks": "two ranks come to what one process comes to",
    "again": "the same run gives the same result",
    "stopping": "it ends after the iteration in which a hook asks for that",
    "resuming": "a run that is stopped and resumed comes to the weights of one that was not",
}
_OF_TRAINING = ("counters", "stopping", "resuming")
_JOBS = ("train", "val", "test", "predict")


def check_loop(
    loop: Any,
    *,
    job: str | None = None,
    form: jobs.Form = jobs.nothing,
    strategies: Sequence[Any] = ("ddp", "fsdp"),
    allow: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Report:
    """Do a loop's job on a small model, in one process and on two ranks, stopped and resumed.

    Args:
        loop: A name, a class, or a dict with `type` and arguments, as ``train_cfg`` or ``val_cfg`` takes it.
        job: ``train``, ``val``, ``test`` or ``predict``; by default what the class says in `job`.
        form: Module-level function; returns arguments of the Runner that the loop needs (`model`, ...).
        strategies: With what the two ranks train.
        allow: Words that the loop may use, as they mean something else there.
        only: Names of the checks to run, of `loop.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
    """
    entry: Any = loop["type"] if isinstance(loop, Mapping) else loop
    entry = LOOPS.get(entry) if isinstance(entry, str) else entry
    if not (isinstance(entry, type) and issubclass(entry, BaseLoop)):
        raise ConfigError(
            f"loop={loop!r} is no loop; give a subclass of BaseLoop, its name, or a dict with 'type'"
        )
    job = job or entry.job
    if job not in _JOBS:
        raise ConfigError(f"job={job!r} is none of a loop's; {nearest(job, _JOBS)}")
    trial = _Trial(portable(LOOPS, loop), job, form, strategies)
    checks = Checks(f"loop={title(loop)} for {job}", CLAIMS, only)
    methods: dict[str, Callable[[], Any]] = {
        "words": lambda: check_words(entry, allow),
        "work": trial.work,
        "points": trial.points,
        "counters": trial.counters,
        "ranks": trial.on_ranks,
        "again": trial.again,
        "stopping": trial.stopping,
        "resuming": trial.resuming,
    }
    try:
        for name, claim in CLAIMS.items():
            checks.run(name, claim, methods[name] if job == "train" or name not in _OF_TRAINING else _skipped)
    finally:
        trial.close()
    return checks.done()


def _skipped() -> None:
    raise NotChecked("that is for loops that train")


class _Trial:
    """The runs of one loop. The whole run in one process is made once."""

    def __init__(self, loop: Any, job: str, form: jobs.Form, strategies: Sequence[Any]) -> None:
        self.job, self.form, self.strategies = job, form, strategies
        spec = dict(loop) if isinstance(loop, Mapping) else {"type": loop}
        self.changes = {f"{job}_cfg": spec}
        self.folder = tempfile.mkdtemp(prefix="stratrun-check-")
        self.ranks = shared_ranks(2)
        self._whole: jobs.Done | None = None

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name: str, changes: Mapping[str, Any] | None = None, **options: Any) -> jobs.Done:
        changed = {**self.changes, **(changes or {})}
        done: jobs.Done = alone(
            jobs.run, self.form, changed, f"{self.folder}/{name}", job=self.job, **options
        )
        return done

    @property
    def whole(self) -> jobs.Done:
        if self._whole is None:
            self._whole = self.run("whole")
        return self._whole

    # -- the checks

    def work(self) -> str:
        done = self.whole
        if self.job == "predict":
            if not isinstance(done.result, list):
                raise Wrong(
                    f"run() returned {type(done.result).__name__}", "it returns the predictions, a list"
                )
            return f"{len(done.result)} predictions"
        if self.job != "train":
            if not done.metrics:
                raise Wrong(
                    "there are no metrics", "assign runner.metrics what self.evaluator.evaluate() returns"
                )
            return ", ".join(f"{name}={value:.4g}" for name, value in done.metrics.items())
        if not done.counters["iter"]:
            raise Wrong("no iteration was counted", "call runner.engine.finish_iter() after each")
        if not differences(done.weights, done.at_start, 0.0):
            raise Wrong(
                "no weight has changed", "runner.engine.train_step(batch), or forward, backward and step"
            )
        return f"{done.counters['iter']} iterations, {done.counters['step']} updates"

    def points(self) -> str:
        open_points: list[str] = []
        for point in self.whole.points:
            kind, _, what = point.partition("_")
            if kind == "before" and what not in ("run", "save_checkpoint"):
                open_points.append(what)
            elif kind == "after" and what not in ("run", "load_checkpoint"):
                # An epoch that is left before its end has no `after`.
                while open_points and open_points[-1] != what and open_points[-1].endswith("_epoch"):
                    open_points.pop()
                if not open_points or open_points[-1] != what:
                    inside = f" while {open_points[-1]!r} is under way" if open_points else ""
                    raise Wrong(f"{point!r} is called{inside}, without 'before_{what}'")
                open_points.pop()
        if open_points:
            raise Wrong(f"'after_{open_points[-1]}' is not called, though 'before_{open_points[-1]}' is")
        first = f"before_{self.job}"
        if first not in self.whole.points:
            raise Wrong(
                f"{first!r} is not called, nor what belongs to it", "runner.call_hooks(...) where it begins"
            )
        return ", ".join(dict.fromkeys(p for p in self.whole.points if p.startswith("before_")))

    def counters(self) -> None:
        done = self.whole
        if not done.iters:
            raise Wrong("'after_train_iter' is never called")
        if done.iters != list(range(1, len(done.iters) + 1)):
            raise Wrong(
                f"at 'after_train_iter' runner.iter is {done.iters[:3]}, ... instead of [1, 2, 3], ...",
                "call runner.engine.finish_iter() after the work and before the point",
            )

    def on_ranks(self) -> None:
        one = self.whole
        for strategy in self.strategies:
            changes = {**self.changes, "strategy": strategy}
            target = f"{self.folder}/on-{strategy if isinstance(strategy, str) else 'ranks'}"
            for rank, done in enumerate(self.ranks(jobs.on_rank, self.form, changes, target, job=self.job)):
                where = f"under strategy={strategy!r}, on rank {rank}"
                if wrong := differences(done.weights, one.weights, 2e-6):
                    raise Wrong(
                        f"{where}: {wrong}",
                        "work goes through the verbs of runner.engine, which average over processes; what "
                        "steers the loop is made the same on all of them by runner.engine.mean()",
                    )
                if done.counters != one.counters:
                    raise Wrong(f"{where} the counters end at {done.counters} instead of {one.counters}")
                if wrong := differing(done.metrics, one.metrics, "metrics", 1e-5):
                    raise Wrong(
                        f"{where} and in one process {wrong}",
                        "take metrics from self.evaluator, which counts all",
                    )
                if self.job == "predict" and (
                    wrong := differing(done.result, one.result, "predictions", 1e-5)
                ):
                    raise Wrong(
                        f"{where} and in one process {wrong}", "runner.engine.collect() puts them in order"
                    )

    def again(self) -> None:
        done = self.run("again")
        if wrong := differences(done.weights, self.whole.weights, 0.0):
            raise Wrong(wrong, "draw random numbers from torch, numpy or random, which a run seeds")
        if wrong := differing(done.metrics, self.whole.metrics, "metrics"):
            raise Wrong(wrong)

    def stopping(self) -> None:
        done = self.run("stopped", stop_at=2)
        if done.counters["iter"] != 2:
            raise Wrong(
                f"asked to stop after iteration 2 it ended after {done.counters['iter']}",
                "leave when runner.state.should_stop is set, after each iteration",
            )

    def resuming(self) -> None:
        at = min(jobs.STOP, self.whole.counters["iter"] - 1)
        if at < 1:
            raise NotChecked("it makes one iteration only; set more by its arguments")
        self.run("resumed", stop_at=at, save=True)
        done = self.run("resumed", {"resume": True})
        if done.counters != self.whole.counters:
            raise Wrong(
                f"stopped after {at} iterations and resumed it ended at {done.counters} instead of "
                f"{self.whole.counters}",
                "go on from runner.epoch and runner.iter, and from self.dataloader.batches_done",
            )
        if wrong := differences(done.weights, self.whole.weights, 0.0):
            raise Wrong(
                wrong, "self.dataloader.set_epoch(runner.epoch) before each epoch; keep no state in the loop"
            )
