"""The end of a job that was asked for from outside, and of the process after it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGINT, Signals

from stratrun.control import parse_control
from stratrun.control.requeue import requeue
from stratrun.errors import ConfigError, Interrupted, Stopped
from stratrun.hooks import CheckpointHook
from stratrun.loggers.abilities import Outcome
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form, Job


@contextmanager
def caught(runner: RunnerContext, form: Form, job: Job) -> Iterator[str]:
    """Take signals for as long as the job is made ready and done. Gives why not, if that cannot be."""
    settings, launched = parse_control(form.control_cfg), "RANK" in os.environ
    before = runner.control.lacks
    try:
        with runner.control.job(job, settings, launched=launched, prompt=_is_interactive()) as why_not:
            yield why_not
    finally:
        runner.control.lacks = before


def allow_requests(runner: RunnerContext, form: Form, job: Job) -> None:
    """Let hooks ask for what the job can do, and for no more.

    Raises:
        ConfigError: the job is to start again when it was stopped, but nothing saves.
    """
    lacks = _lacks(runner, form, job)
    if job == "train" and parse_control(form.control_cfg).requeue and "save" in lacks:
        raise ConfigError(f"control_cfg: requeue=True would begin anew each time: {lacks['save']}")
    runner.control.lacks = lacks


def leave(runner: RunnerContext, form: Form, job: Job, close: Callable[[], None]) -> None:
    """After a job that was stopped from outside: have it start again if that is wished, and end the process.

    Raises:
        Stopped: a signal has ended the job, and the run is closed. `Interrupted` for Ctrl-C; and
            KeyboardInterrupt in its place at a prompt, where the run stays open.
    """
    state = runner.state
    # A job within another leaves it to that to end tidily.
    if not state.urgent or runner.control.doing:
        return
    again = job == "train" and state.stop_signal != SIGINT and not _is_done(runner)
    if again and runner.rank == 0 and parse_control(form.control_cfg).requeue:
        runner.loggers.say(f"stratrun: {requeue()}")
    if not state.stop_signal:
        return
    message = f"{job} stopped by {Signals(state.stop_signal).name}"
    if job == "train" and runner.last_checkpoint:
        message += f" after {runner.iter} iterations; resume=True goes on from {runner.last_checkpoint}"
    interrupted = state.stop_signal == SIGINT
    if interrupted and _is_interactive():
        raise KeyboardInterrupt(message)
    close()
    raise (Interrupted if interrupted else Stopped)(message, state.stop_signal)


def failed(runner: RunnerContext, error: BaseException) -> Outcome:
    """Add to an error what the run knows of it. Returns how the job has ended."""
    from stratrun.runner.hints import explain  # only now, as few runs fail

    explain(error, runner.engine.state_module)
    return outcome(runner, error)


def outcome(runner: RunnerContext, error: BaseException | None = None) -> Outcome:
    """How a job has ended, in the words of those that keep track of runs."""
    if runner.state.urgent or isinstance(error, KeyboardInterrupt | SystemExit):
        return "killed"
    return "finished" if error is None else "failed"


def _lacks(runner: RunnerContext, form: Form, job: Job) -> dict[str, str]:
    """What may not be requested in this job, and why not."""
    if job != "train":
        return dict.fromkeys(("save", "validate"), f"the job is {job}, which is not training")
    lacks = {}
    if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
        lacks["save"] = "there is no CheckpointHook, which saves; leave it among the hooks"
    if not form.validates:
        lacks["validate"] = "there is no val_dataloader to validate on; give one"
    return lacks


def _is_done(runner: RunnerContext) -> bool:
    """Whether there is nothing left to train, nor to validate."""
    if runner.state.validation_left:
        return False
    ends = ((runner.epoch, runner.max_epochs), (runner.iter, runner.max_iters))
    return any(most is not None and done >= most for done, most in ends)


def _is_interactive() -> bool:
    """Whether somebody at a prompt goes on with the process: the interpreter's, or that of a notebook."""
    notebook = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(sys, "ps1") or notebook is not None
