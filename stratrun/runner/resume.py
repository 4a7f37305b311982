"""Where a run goes on from: a checkpoint, weights, or nothing."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from stratrun.checkpoint import look_into, missing
from stratrun.checkpoint.agreement import decided_by_main
from stratrun.checkpoint.parts import LoadFrom
from stratrun.checkpoint.remains import unfinished_run
from stratrun.checkpoint.selection import split_name
from stratrun.distributed import Collectives
from stratrun.errors import CheckpointError, CheckpointNotFoundError, StratrunError
from stratrun.problems import Gathering, part
from stratrun.runner import persistence
from stratrun.runner.context import RunnerContext
from stratrun.runner.form import Form
from stratrun.runner.partial import find, load_parts, meant
from stratrun.runner.saving import parse_saving
from stratrun.storage import Folder
from stratrun.storage.urls import redacted


def check(runner: RunnerContext, ranks: Collectives, form: Form, job: str) -> None:
    """Refuse a run that has nothing to go on from, or would get into another's way, before it is built.

    Raises:
        CheckpointError: there is no such checkpoint, or `work_dir` holds those of another run.
    """
    if job == "train" and runner.iter == 0:
        if form.resume is False and runner.last_checkpoint is None:
            runner.checkpointer.claim()
        elif form.resume not in (False, "auto"):
            folder = _chosen(runner, ranks, form)
            error = _no_checkpoint(form.resume, folder) if ranks.is_main else None
            ranks.agree(error, "resuming")
    if form.load_from is not None and not runner.has_weights:
        wanted = _wanted(form)
        at = find(runner, ranks, wanted.path, wanted.options, str(wanted))
        ranks.agree(_no_weights(wanted, at) if ranks.is_main else None, "loading weights")


def look(form: Form, jobs: Sequence[str], found: Gathering) -> None:
    """Refuse a path of this machine where there is nothing to go on from, without a run.

    URLs are not asked, and names such as ``best`` are left to the run, whose folder they are in.
    """
    if "train" in jobs and isinstance(form.resume, str | os.PathLike) and not found.within("resume"):
        given = os.fspath(form.resume)
        if given != "auto" and _is_plain(given):
            with part("resume"):
                _raise(_no_checkpoint(form.resume, Folder(given)), f"resume={given!r}")
    if not found.within("load_from") and form.load_from is not None:
        with part("load_from"):
            wanted = LoadFrom.parse(form.load_from)
            if _is_plain(wanted.path):
                _raise(_no_weights(wanted, Folder(wanted.path)), str(wanted))


def _is_plain(given: str) -> bool:
    """Whether it is a path, and neither a URL nor a name."""
    return "://" not in given and split_name(given)[1] is None


def _raise(error: Exception | None, what: str) -> None:
    if isinstance(error, StratrunError):
        raise error
    if error is not None:
        told = f"{what} cannot be looked into: {type(error).__name__}: {error}; give one that can be read"
        raise CheckpointError(told) from error


def _chosen(runner: RunnerContext, ranks: Collectives, form: Form) -> Folder:
    """Where to look for what is to be gone on with."""
    if form.resume in (True, "auto"):
        return runner.checkpointer.folder
    given = os.fspath(form.resume)
    return find(runner, ranks, given, _options_for(given, form), f"resume={_shown(form.resume)!r}")


def _wanted(form: Form) -> LoadFrom:
    """What `load_from` says; at a URL with the options of the work dir unless it has its own."""
    wanted = LoadFrom.parse(form.load_from)
    return wanted if wanted.options else replace(wanted, options=_options_for(wanted.path, form))


def _options_for(path: str, form: Form) -> Mapping[str, Any]:
    return parse_saving(form.checkpoint_cfg).storage_options if "://" in path else {}


def _shown(given: Any) -> Any:
    return redacted(os.fspath(given)) if isinstance(given, str | os.PathLike) else given


def _no_checkpoint(resume: Any, folder: Folder) -> Exception | None:
    """Why nothing can be resumed from there. Returned, as the other ranks wait to be told."""
    try:
        look_into(folder)
    except CheckpointNotFoundError as error:
        return _not_found(resume, error)
    except Exception as error:
        return error
    return None


def _not_found(resume: Any, error: CheckpointNotFoundError) -> CheckpointNotFoundError:
    """The same, with what the user gave, and what would do."""
    given = _shown(resume)
    if resume is True:
        return CheckpointNotFoundError(f"resume=True: {error}; resume='auto' starts anew where there is none")
    if re.search(r"\.(safetensors|pth?|bin|ckpt)$", str(given).lower()):
        return CheckpointNotFoundError(
            f"resume={given!r} is a file of weights, and a run goes on from a checkpoint of its whole state; "
            f"load_from={given!r} starts a new run with the weights"
        )
    auto = get_close_matches(str(given).lower(), ["auto"], cutoff=0.7)
    hint = "; did you mean 'auto', the newest in work_dir if there is one?" if auto else meant(str(given))
    return CheckpointNotFoundError(f"resume={given!r}: {error}{hint}")


def _no_weights(wanted: LoadFrom, at: Folder) -> Exception | None:
    """Why nothing can be loaded from there. Returned, as the other ranks wait to be told."""
    try:
        if at.exists():
            return None
        return CheckpointNotFoundError(f"{wanted}: {missing(at)}{meant(wanted.path)}")
    except Exception as error:
        return error


def load(runner: RunnerContext, ranks: Collectives, form: Form) -> str:
    """Put the run where it is to go on from. Returns what was done, for the user.

    Done once: a later job of the same runner goes on with what the earlier one left.
    """
    if runner.training and runner.iter == 0 and form.resume is not False:
        found = _resume(runner, ranks, form)
        if found is not None:
            runner.has_weights = True
            return found
    if runner.training:
        begun = runner.iter > 0 or runner.last_checkpoint is not None
        runner.checkpointer.claim(after=runner.iter if begun else -1)
    told = _load_parts(runner, ranks, form)
    if told is not None:
        return told
    if runner.training:
        runner.has_weights = True
        return "a new start"
    return f"weights as {'they are now' if runner.has_weights else 'the model was built with'}"


def load_learnt(runner: RunnerContext, ranks: Collectives, form: Form) -> None:
    """Weights and optimizers as training would begin with them, into a run that puts its own back later."""
    if runner.iter > 0:
        return
    if form.resume is not False:
        try:
            loaded = runner.checkpointer.load(_chosen(runner, ranks, form), runner.engine.saved.rooms.room)
        except CheckpointNotFoundError as error:
            if form.resume != "auto":
                raise _not_found(form.resume, error) from error
        else:
            runner.engine.saved.load_shared_state(loaded.shared)
            return
    if form.load_from is not None and (not runner.has_weights or runner.load_report is not None):
        wanted = _wanted(form)
        parts = tuple(part for part in wanted.parts if part in ("model", "optimizer", "precision"))
        if parts:
            load_parts(runner, ranks, wanted, parts)


def _load_parts(runner: RunnerContext, ranks: Collectives, form: Form) -> str | None:
    """What `load_from` says, once: the weights for any job, and the rest when training begins."""
    if form.load_from is None:
        return None
    wanted = _wanted(form)
    before = () if runner.load_report is None else runner.load_report.parts
    parts = tuple(
        part
        for part in wanted.parts
        if part not in before and (part == "model" or (runner.training and runner.iter == 0))
    )
    if (runner.has_weights and not before) or not parts:
        return None
    report = load_parts(runner, ranks, wanted, parts)
    runner.loggers.say(str(report))
    if runner.load_report is None:
        runner.load_report = report
    else:
        runner.load_report = runner.load_report.joined(report)
    runner.has_weights |= runner.training or "model" in parts
    return f"{'weights' if parts == ('model',) else ', '.join(parts)} from {report.url}"


def _resume(runner: RunnerContext, ranks: Collectives, form: Form) -> str | None:
    try:
        loaded = runner.checkpointer.load(_chosen(runner, ranks, form), runner.engine.saved.rooms.room)
    except CheckpointNotFoundError as error:
        if form.resume == "auto":
            _inherit(runner, ranks)
            return None
        raise _not_found(form.resume, error) from error
    runner.reseed(loaded.shared["seed"])
    changed = persistence.restore_shared(runner, loaded.shared)
    runner.checkpointer.claim(after=runner.iter)
    runner.call_hooks("after_load_checkpoint", checkpoint=loaded.shared)
    persistence.restore_own(runner, loaded)
    told = f"resumed from {loaded.url} (epoch {runner.epoch}, iteration {runner.iter})"
    saved = loaded.meta["world_size"]
    if saved != ranks.world_size:
        told += f"; saved at WORLD_SIZE={saved}, now {ranks.world_size}"
    return "\n  ".join([told, *changed])


def _inherit(runner: RunnerContext, ranks: Collectives) -> None:
    """Be the run that was killed before its first checkpoint was whole, so that its remains are removed."""
    folder = runner.checkpointer.folder
    found = decided_by_main(ranks, f"looking into {folder}", lambda: unfinished_run(folder))
    if found is not None:
        runner.checkpointer.run_id = found
