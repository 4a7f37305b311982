"""What a run says of itself when it starts and when it ends."""

from torch import nn
from torch.nn.parameter import is_lazy

from stratrun.blocks import Compilations
from stratrun.checkpoint.layout import name_of
from stratrun.hooks import CheckpointHook
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form
from stratrun.storage.urls import redacted


def at_start(runner: RunnerContext, job: str, origin: str) -> str:
    """The layers and why, the model, the data, and where things go."""
    lines = [f"stratrun: {job}", *(f"  {reason}" for reason in runner.reasons)]
    lines.append(f"  model={type(runner.model).__name__}: {_parameters(runner.model)}")
    lines += [f"  {feed.describe()}" for feed in runner.feeds(job)]
    lines.append(f"  seed={runner.seed}")
    if job == "train":
        lines.append(f"  work_dir={redacted(runner.work_dir)}: {origin}")
    else:
        lines.append(f"  {origin}")
    return "\n".join(lines)


def at_end(runner: RunnerContext, job: str, form: Form, compiled: Compilations | None = None) -> str:
    """Results, where the files are, and what to do next."""
    lines = [f"stratrun: {job} {_how(runner)}"]
    if job == "train":
        lines[0] += f" after {runner.epoch} epochs, {runner.iter} iterations, {runner.step} updates"
        if runner.state.skipped:
            lines.append(f"  {runner.state.skipped} updates were skipped, their gradients having overflowed")
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
    """The command that measures what was trained; without a command line, what to change in the program."""
    job = next((job for job in ("test", "val", "predict") if form.of(job, "dataloader") is not None), None)
    if runner.invocation is None or job is None:
        return f"load_from={checkpoint!r} to validate, test or predict with it"
    return runner.invocation.command(job, load_from=checkpoint)


def _parameters(model: nn.Module) -> str:
    known = [p for p in model.parameters() if not is_lazy(p)]
    counts = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in known]
    total, trained = sum(n for n, _, _ in counts), sum(n for n, _, grad in counts if grad)
    size = sum(b for _, b, _ in counts) / 2**20
    frozen = "" if trained == total else f", {trained:,} of them trained"
    return f"{total:,} parameters{frozen}, {size:.3g} MiB"
