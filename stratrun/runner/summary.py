"""What a run says of itself when it starts and when it ends."""

from time import perf_counter

from torch import nn
from torch.nn.parameter import is_lazy

from stratrun.blocks import Compilations
from stratrun.checkpoint.layout import name_of
from stratrun.hooks import CheckpointHook, IterTimerHook
from stratrun.loggers.text import duration
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form, Job
from stratrun.runner.start import update_size
from stratrun.storage.urls import redacted


class Clock:
    """Where the time of a job goes, from when it is made on."""

    def __init__(self, runner: RunnerContext) -> None:
        self._runner = runner
        self._began, self._samples, self._saving = perf_counter(), runner.samples, runner.seconds_saving

    def told(self, job: Job) -> str:
        """Seconds in all; of training also what they were spent on, and samples a second of its steps."""
        runner, total = self._runner, perf_counter() - self._began
        timer = next((hook for hook in runner.hooks if isinstance(hook, IterTimerHook)), None)
        if job != "train" or timer is None:
            return f"in {_seconds(total)}"
        saving = runner.seconds_saving - self._saving
        steps = max(total - timer.validating - saving, 1e-9)
        spent = {
            "steps": steps - timer.waiting,
            "waiting for data": timer.waiting,
            "validation": timer.validating,
            "saving": saving,
        }
        shares = ", ".join(
            f"{100 * s / total:.0f}% {what}" for what, s in spent.items() if s >= 0.005 * total
        )
        rate = (runner.samples - self._samples) / steps
        return f"in {_seconds(total)}: {shares}; {rate:,.{0 if rate >= 10 else 2}f} samples/s"


def at_start(runner: RunnerContext, job: Job, form: Form, origin: str, ranks: int) -> str:
    """The layers and why, the model, the data, and where things go.

    Args:
        ranks: How many have different samples.
    """
    lines = [f"stratrun: {job}", *(f"  {reason}" for reason in runner.reasons)]
    lines.append(f"  model={type(runner.model).__name__}: {_parameters(runner.model)}")
    lines += [f"  {feed.describe()}" for feed in runner.feeds(job)]
    if job == "train":
        lines += _update(form, ranks)
    lines.append(f"  seed={runner.seed}")
    if job == "train":
        lines.append(f"  work_dir={redacted(runner.work_dir)}: {origin}")
        lines += [f"  checkpoints: {hook.plan}" for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    else:
        lines.append(f"  {origin}")
    return "\n".join(lines)


def at_end(
    runner: RunnerContext, job: Job, form: Form, clock: Clock, compiled: Compilations | None = None
) -> str:
    """Results, where the files are, and what to do next."""
    lines = [f"stratrun: {job} {_how(runner)}"]
    if job == "train":
        lines[0] += f" after {runner.epoch} epochs, {runner.iter} iterations, {runner.step} updates"
        if runner.state.skipped:
            lines.append(f"  {runner.state.skipped} updates were skipped, their gradients having overflowed")
    lines.append(f"  {clock.told(job)}")
    if runner.metrics and job != "predict":
        lines.append("  " + ", ".join(f"{name}={value:.4g}" for name, value in runner.metrics.items()))
    if compiled is not None:
        lines.append(f"  {compiled.describe()}")
    if runner.log_folder and runner.traces is None:
        lines.append(f"  logs: {runner.log_folder}")
    if job == "train" and runner.last_checkpoint:
        lines.append(f"  checkpoint: {runner.last_checkpoint}")
        best = _best(runner, runner.last_checkpoint)
        lines += [f"  best {what}: {checkpoint}" for what, checkpoint in best.items()]
        lines.append(f"  next: {_next(runner, form, next(iter(best.values()), runner.last_checkpoint))}")
    return "\n".join(lines)


def _how(runner: RunnerContext) -> str:
    reason = runner.state.stop_reason
    return f"stopped ({reason})" if runner.state.stopping and reason else "done"


def _best(runner: RunnerContext, last: str) -> dict[str, str]:
    """What was best of each metric that was watched, and the checkpoint that was saved then."""
    folder = last.rpartition("/")[0]
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    found = [(name, best[0]) for hook in hooks for name, best in hook.best.items() if best]
    return {f"{name}={value:.4g}": f"{folder}/{name_of(int(at))}" for name, (value, at) in found}


def _next(runner: RunnerContext, form: Form, checkpoint: str) -> str:
    """The command that goes on with what was cut short, or measures what was trained.

    Without a command line it is what to change in the program.
    """
    if _is_cut_short(runner):
        if runner.invocation is None:
            return f"resume=True, work_dir={redacted(runner.work_dir)!r} to go on"
        return runner.invocation.command("train", work_dir=redacted(runner.work_dir), resume="true")
    job = next((job for job in ("test", "val", "predict") if form.of(job, "dataloader") is not None), None)
    if runner.invocation is None or job is None:
        return f"load_from={checkpoint!r} to validate, test or predict with it"
    return runner.invocation.command(job, load_from=checkpoint)


def _is_cut_short(runner: RunnerContext) -> bool:
    """Whether a signal or a time limit has ended the run, and not what it is about."""
    return runner.state.should_stop and runner.state.urgent


def _parameters(model: nn.Module) -> str:
    known = [p for p in model.parameters() if not is_lazy(p)]
    counts = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in known]
    total, trained = sum(n for n, _, _ in counts), sum(n for n, _, grad in counts if grad)
    size = sum(b for _, b, _ in counts) / 2**20
    frozen = "" if trained == total else f", {trained:,} of them trained"
    return f"{total:,} parameters{frozen}, {size:.3g} MiB"


def _update(form: Form, ranks: int) -> list[str]:
    """What the samples of an update are made of; nothing where the data does not tell."""
    update = update_size(form, ranks)
    if update.batch is None:
        return []
    factors = [(update.batch, "a batch"), (ranks, "ranks"), (update.accumulate, "accumulated")]
    told = " x ".join(f"{count} {what}" for count, what in factors if count > 1 or what == "a batch")
    return [f"  update={update.batch * ranks * update.accumulate} samples: {told}"]


def _seconds(count: float) -> str:
    return f"{count:.3g} s" if count < 100 else duration(count)
