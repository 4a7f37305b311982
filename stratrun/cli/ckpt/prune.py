"""``stratrun ckpt prune``: delete what nobody needs any more, and only with leave."""

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace

from stratrun.cli.ckpt import text
from stratrun.cli.ckpt.entries import Entry, best_of
from stratrun.cli.ckpt.places import add_place, folder_and_entries, is_single, told
from stratrun.errors import CheckpointNotFoundError, ConfigError, nearest
from stratrun.storage import Folder

_DAY = 24 * 3600
_UNFINISHED = ("unfinished", "staged", "discarded")


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep."""

    keep_last: int | None = None
    keep_best: int | None = None
    """Of each metric that was watched; None for all that the run itself kept as such."""
    keep_every: int | None = None
    damaged: bool = False
    leftovers: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, "a work dir, or a folder of checkpoints")
    parser.add_argument("--keep-last", metavar="N", type=_count(1), help="keep the N newest")
    parser.add_argument(
        "--keep-best",
        metavar="N",
        type=_count(0),
        help="keep the N best by each metric that was watched; by default all that the run kept as best",
    )
    parser.add_argument(
        "--keep-every", metavar="N", type=_count(1), help="keep those whose step is a multiple of N"
    )
    parser.add_argument("--run", metavar="ID", help="only what this run has saved")
    parser.add_argument("--damaged", action="store_true", help="delete damaged ones too")
    parser.add_argument(
        "--leftovers",
        action="store_true",
        help="delete unfinished folders that are younger than a day too; make sure that no run is saving",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="take a checkpoint for intact if marker, manifest and sizes fit, without reading all of it",
    )
    parser.add_argument("--yes", action="store_true", help="delete; without it only say what would go")
    parser.epilog = (
        "The newest intact checkpoint of each run always stays. "
        "Unfinished folders that are older than a day go too."
    )


def run(given: Namespace) -> int:
    policy = Policy(given.keep_last, given.keep_best, given.keep_every, given.damaged, given.leftovers)
    if policy == Policy():
        raise ConfigError(
            "what is to stay? give --keep-last N, --keep-every N or --keep-best N, or --leftovers"
        )
    with told():
        folder, entries = folder_and_entries(given)
        if is_single(given):
            raise ConfigError(f"{given.path} is a single checkpoint; give the folder that it is in, {folder}")
        going = _plan(_of_run(entries, given.run, folder), policy, verify=not given.no_verify)
        if not going:
            print("nothing to delete")
            return 0
        for entry, why in going:
            print(f"{entry.name}  {text.size(entry.size):>8}  {why}")
        total = (
            f"{len(going)} folder{'s' if len(going) > 1 else ''}, {text.size(sum(e.size for e, _ in going))}"
        )
        if not (given.yes or _allowed(f"delete {total}?")):
            print(f"would delete {total} from {folder}; --yes deletes")
            return 0
        _delete(folder, [entry for entry, _ in going])
        print(f"deleted {total} from {folder}")
    return 0


def _of_run(entries: list[Entry], run_id: str | None, folder: Folder) -> list[Entry]:
    mine = [entry for entry in entries if run_id in (None, entry.run_id)]
    if not mine:
        known = {entry.run_id for entry in entries if entry.run_id is not None}
        near = nearest(str(run_id), known)
        raise CheckpointNotFoundError(f"--run {run_id}: nothing in {folder} is of that run; {near}")
    return mine


def plan(entries: list[Entry], policy: Policy, now: float) -> list[tuple[Entry, str]]:
    """What goes, and why. Each run keeps its own newest, best and so on.

    Args:
        entries: In the order of steps.
        now: In seconds since 1970, to tell how old unfinished folders are.
    """
    kept = set().union(*(_kept(run, policy) for run in _by_run(entries)))
    any_rule = not (policy.keep_last is policy.keep_every is policy.keep_best is None)
    going = []
    for entry in entries:
        if entry.state == "committed":
            if any_rule and entry.name not in kept:
                going.append((entry, "not among those to keep"))
        elif entry.state == "damaged":
            if policy.damaged:
                going.append((entry, f"damaged: {entry.reason}"))
        elif entry.state in _UNFINISHED:
            old = entry.changed is not None and now - entry.changed > _DAY
            if old or policy.leftovers:
                going.append((entry, f"{entry.state}, last written {text.date(entry.changed)}"))
    return going


def _plan(entries: list[Entry], policy: Policy, *, verify: bool) -> list[tuple[Entry, str]]:
    going = plan(entries, policy, time.time())
    if verify and any(entry.state == "committed" for entry, _ in going):
        going = plan(_checked(entries), policy, time.time())
    return going


def _checked(entries: list[Entry]) -> list[Entry]:
    """The entries, each run's newest ones read until one is intact, as that one is what all rests on."""
    from stratrun.cli.ckpt.verify import check

    damaged: dict[str, Entry] = {}
    for run in _by_run(entries):
        for entry in reversed(run):
            reason, _ = check(entry.folder)
            if reason is None:
                break
            damaged[entry.name] = replace(entry, state="damaged", reason=reason)
    return [damaged.get(entry.name, entry) for entry in entries]


def _by_run(entries: list[Entry]) -> list[list[Entry]]:
    """The checkpoints that pass for intact, by the run that saved them."""
    runs: dict[str | None, list[Entry]] = {}
    for entry in entries:
        if entry.state == "committed":
            runs.setdefault(entry.run_id, []).append(entry)
    return list(runs.values())


def _kept(run: list[Entry], policy: Policy) -> set[str]:
    steps = [entry.step for entry in run]
    kept = {*steps[-(policy.keep_last or 1) :]}
    if policy.keep_every is not None:
        kept |= {step for step in steps if step % policy.keep_every == 0}
    for ranking in best_of(run).values():
        kept |= {*ranking[: policy.keep_best]}
    return {entry.name for entry in run if entry.step in kept}


def _delete(folder: Folder, entries: list[Entry]) -> None:
    # Only now: it imports torch, which takes seconds.
    from stratrun.checkpoint.remains import discard

    for entry in entries:
        if entry.state in _UNFINISHED:
            folder.remove(entry.name)
        else:
            discard(folder, entry.name, entry.run_id or "unknown")


def _allowed(question: str) -> bool:
    """Ask, if there is somebody to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _count(least: int) -> Callable[[str], int]:
    def count(given: str) -> int:
        if not given.isdecimal() or int(given) < least:
            raise ArgumentTypeError(f"{given!r} is no whole number of at least {least}")
        return int(given)

    return count
