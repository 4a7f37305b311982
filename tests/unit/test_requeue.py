"""Jobs that are stopped from outside and put into the queue again."""

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from stratrun import ConfigError, Hook
from stratrun.control.requeue import job_of, requeue
from stratrun.errors import Stopped
from tests.unit.test_control import At, kill, runner_of


class InLastValidation(Hook):
    """Ends the job from outside in the validation after the last iteration."""

    def after_val_iter(self, runner: Any) -> None:
        if runner.iter == 12:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_job_is_put_into_the_queue_again_once(tmp_path: Path, monkeypatch: Any) -> None:
    told = tmp_path / "told"
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    cfg = {"control_cfg": {"requeue": True}, "resume": "auto"}
    for name, number in (("first", signal.SIGUSR1), ("by hand", signal.SIGINT)):
        with pytest.raises(Stopped):
            runner_of(tmp_path / name, At(4, kill(number)), **cfg).train()
    with pytest.raises(ConfigError, match="would begin anew"):
        unsaved = {"default_hooks": {"checkpoint": None}}
        runner_of(tmp_path / "unsaved", At(4, None), **cfg, **unsaved).train()
    with pytest.raises(Stopped):  # there is nothing left to do
        runner_of(tmp_path / "last", At(12, kill(signal.SIGTERM)), **cfg).train()
    # The last validation is, where it was broken off.
    with pytest.raises(Stopped):
        runner_of(tmp_path / "validating", InLastValidation(), **cfg).train()
    assert told.read_text() == "requeue 77\n" * 2


def test_the_queue_is_told_the_task_of_an_array_and_its_answer_is_told(
    tmp_path: Path, monkeypatch: Any
) -> None:
    array = {"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "78", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_of(array) == "78_2"
    assert "no job of SLURM" in requeue({})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no scontrol" in requeue(array)
    fake = tmp_path / "scontrol"
    fake.write_text("#!/bin/sh\necho denied >&2\nexit 3\n")
    fake.chmod(0o755)
    assert "ended with 3: denied" in requeue(array)
