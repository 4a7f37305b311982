"""``stratrun check``: every mistake of a config, with the place of each, and nothing built."""

import json
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass

from stratrun.cli.arguments import JOBS, Arguments, add_config_arguments
from stratrun.cli.check.dry_run import DryRun, dry_run, refuse_launched
from stratrun.cli.check.dry_run import as_text as trial_as_text
from stratrun.cli.check.finding import Finding
from stratrun.cli.failures import MISTAKE, visible
from stratrun.errors import ConfigError, StratrunError


@dataclass(slots=True)
class Checked:
    """What was looked at, and what was found."""

    config: str
    jobs: list[str]
    problems: list[Finding]
    seconds: float
    torch_seconds: float
    """Of these, for the import of torch alone."""
    dry_run: DryRun | None = None


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Neither model nor data are built; hooks are, to see what they say of their values.\n"
        "The exit code is 0 if nothing was found, and 2 otherwise."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--job",
        metavar="JOB",
        action="append",
        choices=JOBS,
        default=[],
        help="train, val, test or predict; default all that the config has data for",
    )
    parser.add_argument("--world-size", metavar="N", type=int, help="ranks that it is to be started on")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="if nothing is wrong, estimate the memory, do one batch of each job, and save and load a "
        "checkpoint where the run would; nothing of it is left",
    )
    parser.add_argument(
        "--meta", action="store_true", help="with --dry-run: go through the step without values, and do none"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(given: Namespace) -> int:
    if given.world_size is not None and given.world_size < 1:
        raise ConfigError(f"--world-size {given.world_size}: must be at least 1")
    if given.meta and not given.dry_run:
        raise ConfigError("--meta says how --dry-run goes through a step; give --dry-run too")
    if given.dry_run:
        refuse_launched()
    found = look(given)
    if not given.json:
        print(as_text(found), flush=True)
    if given.dry_run and not found.problems:
        found.dry_run = dry_run(given, found.jobs)
        if not given.json:
            print(trial_as_text(found.dry_run, meta=given.meta))
    if given.json:
        print(json.dumps(asdict(found), indent=2))
    if found.problems:
        return MISTAKE
    return found.dry_run.code if found.dry_run is not None else 0


def look(given: Namespace) -> Checked:
    """Gather what is wrong with a config."""
    begun = time.perf_counter()
    # Only now: what a class takes is asked of the class, and most are of torch, or made with it.
    import torch  # noqa: F401

    imported = time.perf_counter()
    from stratrun.cli.job import settle
    from stratrun.config import Config
    from stratrun.problems import gathering, part
    from stratrun.runner.whole import examine

    arguments = Arguments("train", given.config, tuple(given.settings), allow=tuple(given.allow))
    config, jobs = Config(), []
    with gathering() as found:
        config = settle(arguments)
        for name in given.imports:
            with part():
                _import(name)
        jobs = examine(config, found, given.job, given.world_size)
    findings = [Finding.of(one, config, given.config) for one in found.found]
    done = time.perf_counter()
    return Checked(
        config=given.config,
        jobs=list(jobs),
        problems=sorted(findings, key=lambda one: one.order),
        seconds=round(done - begun, 3),
        torch_seconds=round(imported - begun, 3),
    )


def _import(name: str) -> None:
    from stratrun.cli.imports import import_named

    try:
        import_named(name)
    except StratrunError:
        raise
    except Exception as error:  # whatever a module of the user's raises
        raise ConfigError(f"--import {name}: {type(error).__name__}: {error}; import it by itself") from error


def as_text(found: Checked) -> str:
    jobs = ", ".join(found.jobs) or "no job"
    own = found.seconds - found.torch_seconds
    took = f"{own:.1f} s, and {found.torch_seconds:.1f} s to import torch"
    if not found.problems:
        return f"{found.config}: nothing is wrong with {jobs} ({took})"
    lines = [visible(f"{one.place}: {one.message}") for one in found.problems]
    count = len(found.problems)
    return "\n".join([*lines, f"{found.config}: {count} problem{'s' * (count > 1)} ({took})"])
