"""The start of a run: connect, seed, and make what every job needs."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch.optim import Optimizer

from stratrun.accelerators.channels_last import ChannelsLast
from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.division import Division
from stratrun.connector import Choice, Wiring, choose, connect
from stratrun.control import Control, parse_control
from stratrun.data import Feed, samples_of_batch
from stratrun.distributed import Collectives, DataRanks, ProcessEnv, leave
from stratrun.engine import Clipping, Engine, NonFinite
from stratrun.errors import DataError
from stratrun.evaluation import Evaluator, build_evaluator
from stratrun.loggers import LoggerGroup, RecordBuffer
from stratrun.loops import BaseLoop
from stratrun.loops.schedule import accumulation_of
from stratrun.optim import Schedule
from stratrun.optim import optimizer as optimizers
from stratrun.optim import scheduler as schedules
from stratrun.optim.scaling import UpdateSize
from stratrun.runner import settings
from stratrun.runner.developing import parse_dev
from stratrun.runner.environment import draw_seed, parse_env, parse_randomness
from stratrun.runner.form import Form
from stratrun.runner.saving import SaveSettings, parse_saving
from stratrun.seed import derive_seed, seed_everything
from stratrun.state import TrainState
from stratrun.storage import Folder
from stratrun.storage.urls import redacted
from stratrun.strategies.base import Strategy

if TYPE_CHECKING:
    from stratrun.runner.trial import Traces


@dataclass(slots=True)
class Started:
    """What a run is made of, whatever its job."""

    engine: Engine
    ranks: Collectives
    control: Collectives
    """Exchanges of the `Control` of the run alone."""
    data: Collectives | DataRanks
    """Exchanges between those ranks that have different samples."""
    records: RecordBuffer
    loggers: LoggerGroup
    checkpointer: Checkpointer
    work_dir: str
    seed: int
    reasons: list[str]
    feeding: dict[str, Any]
    saving: SaveSettings
    device: torch.device
    owns_group: bool
    config: str | None = None
    """The config that the arguments came from, without its secrets."""
    writes: bool = False
    """Whether the loggers are open."""
    traces: "Traces | None" = None
    """What is removed after each job of a trial run, by the main rank."""

    def evaluator(self, spec: Any) -> Evaluator:
        """Metrics over the samples of all ranks."""
        built = build_evaluator(spec)
        built.bind(self.data, self.engine.batch, self.device, self.engine.evaluating.settle)
        return built

    def close(self) -> None:
        with ExitStack() as after:  # each, whatever becomes of those before; last in, first out
            if self.owns_group:
                after.callback(leave)
            after.callback(self.ranks.close)
            after.callback(self.control.close)
            if self.engine.guard is not None:
                after.callback(self.engine.guard.close)
            after.callback(self.checkpointer.close)
            after.callback(self.loggers.close)


def start(form: Form, state: TrainState, control: Control, setup_env: Callable[[], None]) -> Started:
    """Connect the process and seed it. Whatever can be refused is refused before that."""
    env = ProcessEnv.from_environ(os.environ)
    choice = choose(strategy=form.strategy, accelerator=form.accelerator, precision=form.precision, env=env)
    options: dict[str, Any] = {"clipping": Clipping.parse(form.clip_grad)}
    options["non_finite"] = NonFinite.parse(form.non_finite)
    environment, randomness = parse_env(form.env_cfg), parse_randomness(form.randomness)
    saving = parse_saving(form.checkpoint_cfg)
    setup_env()
    timeouts = environment.group_timeout, timedelta(seconds=saving.deadline)
    options["backend"] = environment.backend
    wiring = connect(choice, env=env, state=state, timeouts=timeouts, **options)
    ranks, data = wiring.collectives, wiring.data
    randomness.apply()
    drawn = draw_seed() if randomness.seed is None else randomness.seed
    work_dir, run_id, seed = ranks.from_main((_work_dir(form), uuid4().hex[:12], drawn))
    wiring.reasons.extend(parse_dev(form.dev_cfg).told())
    traces = _traces(work_dir, saving) if ranks.is_main and _is_trial(form) else None
    # The main rank's stream is that of a plain script with this seed; others have their own, or dropout
    # would be the same on all of them. Ranks that work on the same samples have the same.
    seed_everything(derive_seed(seed, "rank", data.rank) if data.rank else seed)
    checkpointer = _checkpointer(work_dir, run_id, wiring, choice.strategy, saving)
    wiring.engine.watches.append(checkpointer.raise_if_failed)
    _take_part(control, wiring, form, choice.strategy)
    return Started(
        engine=wiring.engine,
        ranks=ranks,
        control=wiring.control,
        data=data,
        records=RecordBuffer(data if data.world_size > 1 else None),
        loggers=LoggerGroup(),
        checkpointer=checkpointer,
        work_dir=work_dir,
        seed=seed,
        reasons=wiring.reasons,
        feeding=_feeding(wiring, choice, seed, channels_last=bool(environment.channels_last)),
        saving=saving,
        device=wiring.device,
        owns_group=wiring.owns_group,
        config=_config_text(form.cfg),
        traces=traces,
    )


def _feeding(wiring: Wiring, choice: Choice, seed: int, *, channels_last: bool) -> dict[str, Any]:
    """What all loaders of the run are built with."""
    engine, data, move = wiring.engine, wiring.data, wiring.engine.move
    return {
        "seed": seed,
        "rank": data.rank,
        "world_size": data.world_size,
        "batch": engine.batch,
        "move": ChannelsLast.after(move) if channels_last else move,
        "pin_memory": wiring.pin_memory,
        "in_step": engine.evaluating.in_step,
        "ranks": wiring.collectives,
        "beside": choice.accelerator.side_copies(wiring.device),
    }


def _take_part(control: Control, wiring: Wiring, form: Form, strategy: Strategy) -> None:
    engine, limits = wiring.engine, parse_control(form.control_cfg)
    # Where a forward pass is an exchange, or ranks share batches, all have to make the same ones.
    apart = not strategy.collective_forward and strategy.ranks_per_batch == 1
    settle, in_step, alike = engine.evaluating.settle, engine.evaluating.in_step, wiring.data.world_size == 1

    def together() -> bool:
        return alike if in_step is None else not in_step.parted

    watches = control.connect(wiring.control, limits, settle=settle, apart=apart, together=together)
    engine.watches.extend(watches)


def _checkpointer(
    work_dir: str, run_id: str, wiring: Wiring, strategy: Strategy, saving: SaveSettings
) -> Checkpointer:
    size, each = wiring.collectives.world_size, strategy.ranks_per_batch
    return Checkpointer(
        Folder(work_dir, **saving.storage_options).child("checkpoints"),
        wiring.collectives,
        run_id=run_id,
        saving=wiring.saving,
        deadline=saving.deadline,
        division=Division(size, each, strategy.shares_gradients),
    )


def open_loggers(started: Started, form: Form) -> None:
    """Begin to write, once: not before everything is built, so that a refused run leaves nothing behind."""
    if started.writes:
        return
    started.writes = True
    ranks, work_dir, options = started.ranks, started.work_dir, started.saving.storage_options
    error: Exception | None = None
    try:
        loggers = LoggerGroup.build(form.loggers, work_dir=work_dir, is_main=ranks.is_main, **options)
        started.loggers = loggers
        if started.config is not None:
            loggers.log_config(started.config)
        if loggers.folder is not None and loggers.loggers:
            loggers.postponed = partial(_write_environment, loggers.folder.path)
    except Exception as caught:
        error = caught
    # Only the main rank writes: the others must hear of it when it cannot.
    ranks.agree(error, f"opening work_dir={redacted(work_dir)!r}")


def _write_environment(folder: Path) -> None:
    # What it imports takes longer than all else at the start.
    from stratrun.environment import environment_report

    # Loggers tell of a disk that is full.
    with suppress(OSError):
        (folder / "environment.txt").write_text(f"{environment_report()}\n", encoding="utf-8")


def _config_text(cfg: Mapping[str, Any] | None) -> str | None:
    if cfg is None:
        return None
    # Only now, as it imports a YAML reader that a run from Python does without.
    from stratrun.config import Config

    return Config(cfg).to_yaml()


def agree_on_length(ranks: Collectives, feed: Any) -> None:
    """Refuse training data of which the ranks have different numbers of batches.

    Data that we share out never is like that. With batches that come ready, a rank that has more would
    wait for the others in an exchange of gradients that they do not come to.

    Raises:
        DataError: on every rank.
    """
    lengths = ranks.gather(feed.lengths if isinstance(feed, Feed) else None)
    if any(length != lengths[0] for length in lengths):
        shown = [length[0] if length is not None and len(length) == 1 else length for length in lengths]
        told = ", ".join(f"rank {rank}: {length}" for rank, length in enumerate(shown))
        raise DataError(
            f"train_dataloader has different numbers of batches on the ranks ({told}); give a data set, "
            "which is shared out evenly, or the same number of batches on each rank"
        )


def update_size(form: Form, ranks: int) -> UpdateSize:
    """What an update is made of when a run begins, as far as it is known before data is read.

    Args:
        ranks: How many have different samples.
    """
    batch = samples_of_batch(form.train_dataloader, ranks)
    return UpdateSize(batch, ranks, accumulation_of(form.train_cfg).at(0))


def prepare_training(form: Form, engine: Engine, update: UpdateSize) -> None:
    """Build the optimizers, and make the model ready for them."""
    spec = form.optimizer
    names = {} if spec is None else optimizers.specs(spec)
    engine.prepare_training(
        lambda module: {} if spec is None else optimizers.build(spec, module, update), several=len(names) > 1
    )
    engine.settings = {
        **engine.settings,
        "accumulate": accumulation_of(form.train_cfg).plain,
        "scaled_for": optimizers.scaled_for(spec, update),
        "optimizers": settings.of_optimizers(engine.optimizers),
    }


def prepare_schedules(form: Form, engine: Engine, loop: BaseLoop) -> list[Schedule]:
    """Build the schedules, which may go by how long the training of this loop is."""
    built = schedules.build(form.param_scheduler, engine.optimizers, loop.extent())
    engine.settings = {**engine.settings, "schedules": [settings.of_schedule(one) for one in built]}
    return built


def _work_dir(form: Form) -> str:
    work_dir = _given_work_dir(form)
    if not _is_trial(form):
        return work_dir
    from stratrun.runner.trial import place_of

    return place_of(work_dir)


def _traces(work_dir: str, saving: SaveSettings) -> "Traces":
    # Only now, as most runs are no trial.
    from stratrun.runner.trial import Traces

    return Traces(work_dir, **saving.storage_options)


def _is_trial(form: Form) -> bool:
    return parse_dev(form.dev_cfg).fast_dev_run > 0


# What runs a program that has no name of its own, and what its runs are called then.
_NAMELESS = {
    "-c": "run",
    "-m": "run",
    "__main__": "run",
    "ipykernel_launcher": "notebook",
    "colab_kernel_launcher": "notebook",
}


def _given_work_dir(form: Form) -> str:
    """Where the user said; else a folder of the program's name: a new one, or to resume the newest."""
    if form.work_dir is not None:
        return str(os.fspath(form.work_dir))
    program = PurePath(sys.argv[0] or "run").stem
    base = PurePath("work_dirs", form.name or _NAMELESS.get(program, program))
    folders = [base]
    while Folder(str(folders[-1])).child("checkpoints").exists():
        folders.append(base.with_name(f"{base.name}-{len(folders) + 1}"))
    return str(folders[-1] if form.resume is False or len(folders) == 1 else folders[-2])


def rates_of(built: Mapping[str, Optimizer]) -> dict[str, list[float | None]]:
    """Learning rates of the groups of each optimizer, before schedules move them."""
    return {
        name: [float(group["lr"]) if "lr" in group else None for group in one.param_groups]
        for name, one in built.items()
    }
