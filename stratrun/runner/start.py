"""The start of a run: connect, seed, and make what every job needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from stratrun.checkpoint import Checkpointer, read_weights
from stratrun.config import Config
from stratrun.connector import choose, connect
from stratrun.distributed import Collectives, ProcessEnv, leave
from stratrun.engine import Clipping, Engine
from stratrun.errors import CheckpointError, CheckpointNotFoundError
from stratrun.loggers import LoggerGroup, RecordBuffer
from stratrun.optim import Schedule
from stratrun.optim import optimizer as optimizers
from stratrun.optim import scheduler as schedules
from stratrun.runner import persistence
from stratrun.runner.environment import draw_seed, parse_env, parse_randomness
from stratrun.runner.form import Form
from stratrun.seed import derive_seed, seed_everything
from stratrun.state import TrainState
from stratrun.storage import Folder

if TYPE_CHECKING:
    from stratrun.runner.inside import Inside


@dataclass(slots=True)
class Started:
    """What a run is made of, whatever its job."""

    engine: Engine
    ranks: Collectives
    records: RecordBuffer
    loggers: LoggerGroup
    checkpointer: Checkpointer
    work_dir: str
    seed: int
    reasons: list[str]
    feeding: dict[str, Any]
    device: torch.device
    owns_group: bool

    def close(self) -> None:
        self.loggers.close()
        if self.owns_group:
            leave()


def start(form: Form, state: TrainState, setup_env: Callable[[], None]) -> Started:
    """Connect the process and seed it. Whatever can be refused is refused before that."""
    env = ProcessEnv.from_environ(os.environ)
    choice = choose(strategy=form.strategy, accelerator=form.accelerator, precision=form.precision, env=env)
    clipping = Clipping.parse(form.clip_grad)
    settings, randomness = parse_env(form.env_cfg), parse_randomness(form.randomness)
    setup_env()
    wiring = connect(
        choice,
        env=env,
        state=state,
        clipping=clipping,
        backend=settings.backend,
        timeout=settings.group_timeout,
    )
    ranks = wiring.collectives
    randomness.apply()
    drawn = draw_seed() if randomness.seed is None else randomness.seed
    work_dir, run_id, seed = ranks.from_main((_work_dir(form), uuid4().hex[:12], drawn))
    # The main rank's stream is that of a plain script with this seed; the others have their own,
    # or dropout would be the same on all of them.
    seed_everything(seed if ranks.is_main else derive_seed(seed, "rank", ranks.rank))
    return Started(
        engine=wiring.engine,
        ranks=ranks,
        records=RecordBuffer(ranks),
        loggers=_open_loggers(form, work_dir, ranks),
        checkpointer=Checkpointer(Folder(work_dir).child("checkpoints"), ranks, run_id=run_id),
        work_dir=work_dir,
        seed=seed,
        reasons=wiring.reasons,
        feeding={
            "seed": seed,
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "batch": wiring.engine.batch,
            "move": wiring.engine.move,
            "pin_memory": wiring.pin_memory,
        },
        device=wiring.device,
        owns_group=wiring.owns_group,
    )


def _open_loggers(form: Form, work_dir: str, ranks: Collectives) -> LoggerGroup:
    error: Exception | None = None
    loggers = LoggerGroup()
    try:
        loggers = LoggerGroup.build(form.loggers, work_dir=work_dir, is_main=ranks.is_main)
        if form.cfg is not None:
            loggers.log_config(Config(form.cfg).to_yaml())
    except Exception as caught:
        error = caught
    # Only the main rank writes: the others must hear of it when it cannot.
    ranks.agree(error, f"opening work_dir={work_dir!r}")
    return loggers


def prepare_training(form: Form, engine: Engine) -> list[Schedule]:
    """Build the optimizers, make the model ready for them, and build their schedules."""
    spec = form.optimizer
    names = {} if spec is None else optimizers.specs(spec)
    engine.prepare_training(
        lambda module: {} if spec is None else optimizers.build(spec, module), several=len(names) > 1
    )
    return schedules.build(form.param_scheduler, engine.optimizers)


def load(runner: Inside, form: Form) -> str:
    """Put the run where it is to go on from. Returns what was done, for the user.

    Done once: a later job of the same runner goes on with what the earlier one left.
    """
    if runner.training and runner.iter == 0 and form.resume is not False:
        found = _resume(runner, form)
        if found is not None:
            runner.has_weights = True
            return found
    if runner.training:
        runner.checkpointer.claim(after=runner.iter if runner.iter else -1)
    if form.load_from is not None and not runner.has_weights:
        load_weights(runner.engine, form.load_from)
        runner.has_weights = True
        return f"weights from {form.load_from}"
    if runner.training:
        runner.has_weights = True
        return "a new start"
    return f"weights as {'they are now' if runner.has_weights else 'the model was built with'}"


def load_weights(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Weights alone, every name and shape as the model has them.

    Raises:
        CheckpointError: some differ; says which.
    """
    weights = read_weights(path)
    try:
        engine.state_module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"load_from={str(path)!r} does not fit the model: {error}") from error


def _resume(runner: Inside, form: Form) -> str | None:
    which = "latest" if form.resume in (True, "auto") else os.fspath(form.resume)
    try:
        loaded = runner.checkpointer.load(which)
    except CheckpointNotFoundError as error:
        if form.resume == "auto":
            return None
        hint = "resume='auto' starts anew where there is none"
        raise CheckpointNotFoundError(f"resume={form.resume!r}: {error}; {hint}") from error
    runner.reseed(loaded.shared["seed"])
    persistence.restore_shared(runner, loaded.shared)
    runner.checkpointer.claim(after=runner.iter)
    runner.call_hooks("after_load_checkpoint", checkpoint=loaded.shared)
    persistence.restore_own(runner, loaded.own, loaded.shared["data"])
    return f"resumed from {loaded.url} (epoch {runner.epoch}, iteration {runner.iter})"


def _work_dir(form: Form) -> str:
    """Where the user said; else the first folder of the program's name that no run has used."""
    if form.work_dir is not None:
        return str(os.fspath(form.work_dir))
    program = PurePath(sys.argv[0] or "run").stem
    base = PurePath("work_dirs", form.name or ("run" if program in ("-c", "-m", "__main__") else program))
    if form.resume is not False:
        return str(base)
    candidates = (base.with_name(f"{base.name}-{i}") if i > 1 else base for i in count(1))
    return next(str(path) for path in candidates if not Folder(str(path)).child("checkpoints").exists())
