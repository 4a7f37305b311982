"""What a check found, told so that whoever wrote the part can mend it."""

import re
import textwrap
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stratrun.errors import ConfigError, StratrunError, nearest
from stratrun.testing.process_state import isolated

Outcome = Literal["passed", "failed", "skipped"]
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it claims, and what became of that."""

    name: str
    claim: str
    outcome: Outcome
    told: str = ""
    """What was found instead where it failed, why it was skipped, or figures where it passed."""
    seconds: float = 0.0


@dataclass
class Report:
    """All that the checks found of one part; as a string for readers."""

    subject: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.outcome == "failed"]

    def finding(self, name: str) -> Finding:
        """The finding of the check called `name`."""
        return next(finding for finding in self.findings if finding.name == name)

    def __str__(self) -> str:
        counts = [(word, sum(f.outcome == word for f in self.findings)) for word in _SIGNS]
        said = ", ".join(f"{number} {word}" for word, number in counts if number)
        # What is wrong comes last, where it is seen first.
        ordered = sorted(self.findings, key=lambda finding: finding.outcome == "failed")
        return "\n".join([f"{self.subject}: {said}", *(_lines(finding) for finding in ordered)])


class CheckFailure(StratrunError, AssertionError):
    """Some checks failed. The message is the report, which is also in `report`."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report

    def __reduce__(self) -> tuple[type["CheckFailure"], tuple[Report]]:
        return type(self), (self.report,)


class Wrong(Exception):
    """A check's claim does not hold.

    Args:
        found: What was found instead.
        likely: Where to look first.
    """

    def __init__(self, found: str, likely: str = "") -> None:
        super().__init__(f"{found}\nlikely: {likely}" if likely else found)


class NotChecked(Exception):
    """A check does not apply, and why."""


class Checks:
    """Runs checks one after the other, whatever becomes of those before.

    Args:
        names: All checks that there are.
        only: Names of those to run; all by default.
    """

    def __init__(self, subject: str, names: Collection[str], only: Collection[str] | None = None) -> None:
        if isinstance(only, str):
            only = (only,)
        for name in only or ():
            if name not in names:
                raise ConfigError(f"only={name!r}: there is no such check; {nearest(name, names)}")
        self.report: Report = Report(subject)
        self._only = only
        self._errors: dict[tuple[type, str], str] = {}

    def run(self, name: str, claim: str, check: Callable[[], str | None]) -> None:
        """Call `check`, which raises `Wrong` or `NotChecked`, or returns figures worth telling."""
        if self._only is not None and name not in self._only:
            return
        start = time.monotonic()
        outcome: Outcome = "passed"
        try:
            with isolated():
                told = check() or ""
        except NotChecked as reason:
            outcome, told = "skipped", str(reason)
        except Wrong as wrong:
            outcome, told = "failed", str(wrong)
        except Exception as error:
            outcome, told = "failed", self._raised(name, error)
        self.report.findings.append(Finding(name, claim, outcome, told, time.monotonic() - start))

    def _raised(self, name: str, error: Exception) -> str:
        # Numbers and folders differ from one check to the next where all else is the same.
        first = self._errors.setdefault((type(error), re.sub(r"\d+|/\S+", "", str(error))), name)
        return _raised(error) if first == name else f"it raised the {type(error).__name__} of {first!r} again"

    def done(self) -> Report:
        """
        Raises:
            CheckFailure: a check failed.
        """
        if self.report.failed:
            raise CheckFailure(self.report)
        return self.report


_SIGNS: dict[Outcome, str] = {"passed": "ok", "skipped": "--", "failed": "NO"}


def _lines(finding: Finding) -> str:
    head = f"  {_SIGNS[finding.outcome]}  {finding.name}: {finding.claim}"
    if not finding.told:
        return head
    told = finding.told if finding.outcome != "skipped" else f"not checked: {finding.told}"
    lines = [wrapped for line in told.splitlines() for wrapped in _wrapped(line)]
    return "\n".join([head, *(f"        {line}" for line in lines)])


def _wrapped(line: str) -> list[str]:
    # What is indented is a traceback or a table, and stays as it is.
    return (
        [line]
        if line.startswith((" ", "---"))
        else textwrap.wrap(line, _WIDTH, break_on_hyphens=False) or [""]
    )


def _raised(error: BaseException) -> str:
    """An error that no check expects: where it came from is most of what there is to say."""
    cause = str(error.__cause__) if error.__cause__ is not None else ""
    remote = cause.startswith("on rank ")
    trace = cause if remote else "".join(traceback.format_exception(error))
    where = f" {cause.splitlines()[0]}" if remote else ""
    return f"it raised {type(error).__name__}{where}: {error}\n{_shortened(trace)}"


def _shortened(trace: str) -> str:
    """The last frames of a traceback, without those of the checks and lines that only underline."""
    trace, _, output = trace.partition("\n--- output")
    frames: list[list[str]] = []
    for line in trace.splitlines():
        if line.startswith("  File "):
            frames.append([])
        if frames and line.startswith("  ") and line.strip("~^ \n"):
            frames[-1].append(line)
    own = str(Path(__file__).parent)
    kept = [frame for frame in frames if own not in frame[0]][-6:]
    said = [line for frame in kept for line in frame[:2]]
    return "\n".join([*said, *([f"  --- output{output}"[:1500]] if output.strip() else [])])
