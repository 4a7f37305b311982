"""Train, kill, resume, compare."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from stratrun.checkpoint.discovery import IN_WORK_DIR
from stratrun.checkpoint.layout import COMMITTED, name_of
from stratrun.cli.verify_resume import verdict
from stratrun.cli.verify_resume.differences import findings
from stratrun.cli.verify_resume.outcome import Outcome, outcome_of
from stratrun.cli.verify_resume.part import Part, Role
from stratrun.errors import MissingDependencyError

_LOOK = 0.02


def verify(given: Namespace) -> int:
    """Returns the exit code: 0 for equal, 1 for not, and that of a training that failed."""
    with TemporaryDirectory(prefix="stratrun-verify-", ignore_cleanup_errors=True) as home:
        trial = _Trial(given, Path(home))
        try:
            return trial.run()
        except _Failed as failed:
            sys.stderr.write(failed.output)
            print(f"verify-resume: nothing was compared: {failed}")
            return failed.code
        finally:
            trial.end()


class _Failed(Exception):
    """A training did not do its part."""

    def __init__(self, what: str, code: int, output: str) -> None:
        super().__init__(what)
        self.code = code
        self.output = output


class _Trial:
    """The trainings, each in processes of its own, one after another."""

    def __init__(self, given: Namespace, home: Path) -> None:
        self._given = given
        self._home = home
        self._at: int | None = given.at
        self._iters: int = given.iters
        self._running: subprocess.Popen[bytes] | None = None
        self._part: Part

    def run(self) -> int:
        _say("training without a break")
        whole = self._finished("whole", "whole")
        plan = json.loads(self._part.plan.read_text())
        self._at, self._iters = plan["at"], plan["iters"]
        assert self._at is not None
        if whole.step <= self._at:
            raise _Failed(f"training ends after iteration {whole.step}; use a smaller --at", 2, "")
        _say(f"{whole.step} iterations; training again, killed after the checkpoint of iteration {self._at}")
        self._kill_after(self._at)
        _say("killed; resuming")
        resumed = self._finished("resumed", "broken")
        since = int(self._part.resumed_from.read_text())
        hidden = verdict.hidden_differences(self._hidden("whole", "whole"), self._hidden("resumed", "broken"))
        found = findings(whole, resumed, since)
        if not any(one.differing for one in found):
            print(verdict.equal(found, hidden, since, whole.step, self._given.nproc))
            return 0
        _say("they differ; training once more without a break, to see whether that differs too")
        again = findings(whole, self._finished("whole", "again"), 0)
        print(verdict.different(found, hidden, since, not any(one.differing for one in again)))
        return 1

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if self._running is not None:
            self._kill(self._running)

    def _finished(self, role: Role, folder: str) -> Outcome:
        process = self._start(role, folder)
        code = process.wait()
        self._running = None
        if code:
            raise _Failed(f"the {_CALLED[role]} training failed", max(code, 1), self._output("err"))
        return outcome_of(self._home / folder)

    def _kill_after(self, at: int) -> None:
        process = self._start("broken", "broken")
        marker = self._home / "broken" / IN_WORK_DIR / name_of(at) / COMMITTED
        while not marker.exists():
            if process.poll() is not None:
                self._running = None
                raise _Failed(
                    f"the training to be killed ended before, with code {process.returncode}",
                    max(process.returncode, 1),
                    self._output("err"),
                )
            time.sleep(_LOOK)
        self._kill(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """As ``kill -9`` does, each process that trains, and what has started them."""
        ids = [int(one.name) for one in self._part.processes.glob("*")] if process.poll() is None else []
        for one in ids:
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.kill()
        process.wait()
        self._running = None

    def _start(self, role: Role, folder: str) -> subprocess.Popen[bytes]:
        place = self._home / folder
        place.mkdir(exist_ok=True)
        self._part = Part(role, str(place), self._at, self._iters)
        with open(self._home / "out", "wb") as out, open(self._home / "err", "wb") as err:
            self._running = subprocess.Popen(
                self._command(), env={**os.environ, **self._part.to_environ()}, stdout=out, stderr=err
            )
        return self._running

    def _command(self) -> list[str]:
        given = self._given
        words = ["-m", "stratrun", "verify-resume", given.config, *given.settings]
        words += [word for name in given.imports for word in ("--import", name)]
        words += [word for prefix in given.allow for word in ("--allow", prefix)]
        if given.nproc == 1:
            return [sys.executable, *words]
        beside = Path(sys.executable).with_name("torchrun")
        torchrun = str(beside) if beside.exists() else shutil.which("torchrun")
        if torchrun is None:
            raise MissingDependencyError(
                f"--nproc {given.nproc} needs torchrun, which comes with torch, and is neither beside "
                f"{sys.executable} nor on the path"
            )
        return [torchrun, "--standalone", f"--nproc_per_node={given.nproc}", *words]

    def _output(self, name: str) -> str:
        return (self._home / name).read_text(errors="replace")

    def _hidden(self, role: Role, folder: str) -> dict[str, str]:
        part = Part(role, str(self._home / folder), None, 0)
        found: dict[str, str] = json.loads(part.hidden.read_text())
        return found


_CALLED = {"whole": "uninterrupted", "broken": "broken", "resumed": "resumed"}


def _say(text: str) -> None:
    print(f"verify-resume: {text}", flush=True)
