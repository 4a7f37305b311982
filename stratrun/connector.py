"""Choose the parts, check that they fit, join them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch

from stratrun.accelerators.base import Accelerator
from stratrun.distributed import (
    Collectives,
    DataRanks,
    ProcessEnv,
    control_group,
    gradient_group,
    join,
    message_board,
    torchrun_command,
)
from stratrun.engine import Clipping, Engine, Guard, NonFinite
from stratrun.errors import ConfigError, IncompatibleError, UnknownNameError
from stratrun.precision.base import Precision
from stratrun.problems import KnownProblem, part
from stratrun.registry import ACCELERATORS, PRECISIONS, STRATEGIES, Registry
from stratrun.state import TrainState
from stratrun.strategies.base import Strategy

T = TypeVar("T")
_FOREIGN = {
    ("accelerator", "gpu"): "'cuda' for NVIDIA and AMD, 'mps' for Apple, or 'auto'",
    ("strategy", "dp"): "'ddp', started with torchrun",
    ("strategy", "ddp_spawn"): "'ddp', started with torchrun",
    ("strategy", "ddp_notebook"): "'ddp', started with torchrun",
    ("precision", "16-mixed-true"): "'16-mixed' or '16-true'",
    ("precision", "amp"): "'bf16-mixed' or '16-mixed'",
}


class Choice(NamedTuple):
    """The parts of a run, and why these."""

    accelerator: Accelerator
    strategy: Strategy
    precision: Precision
    reasons: list[str]


class Wiring(NamedTuple):
    """What the runner gets: verbs for loops and hooks, exchanges for what it builds itself."""

    engine: Engine
    collectives: Collectives
    data: Collectives | DataRanks
    """Exchanges between those that have different samples."""
    saving: Collectives
    """A group of their own for saves, which go on beside all else."""
    control: Collectives
    """A group of their own for what ranks ask of each other while they compute."""
    device: torch.device
    pin_memory: bool
    owns_group: bool
    reasons: list[str]


def choose(
    *, strategy: Any, accelerator: Any, precision: Any, env: ProcessEnv, launched: bool = True
) -> Choice:
    """Resolve names and ``'auto'``, and refuse parts that do not fit. Starts nothing.

    Reads only what the parts declare, so that a part of a plugin needs no line here.

    Args:
        launched: Whether `env` is what the run is started with, so that the strategy must fit it.

    Raises:
        UnknownNameError, ConfigError: a part cannot be built.
        IncompatibleError: the parts do not fit one another, this machine, or how it was launched.
    """
    reasons: list[str] = []
    hardware = placement = numbers = None
    with part("accelerator"):
        hardware = _accelerator(accelerator, reasons)
    with part("strategy"):
        placement = _strategy(strategy, env, reasons)
    numbers = _built(PRECISIONS, precision, "precision", Precision)
    reasons.append(f"precision={numbers.name}: as given")
    if hardware is None or placement is None:
        raise KnownProblem
    _check_hardware(hardware, placement, numbers)
    if launched:
        _check_processes(placement, env)
    return Choice(hardware, placement, numbers, reasons)


def connect(
    choice: Choice,
    *,
    env: ProcessEnv,
    state: TrainState,
    clipping: Clipping | None = None,
    non_finite: NonFinite | None = None,
    backend: str | None = None,
    timeouts: tuple[timedelta, timedelta] = (timedelta(minutes=10), timedelta(minutes=10)),
) -> Wiring:
    """Start the process groups and join the parts. Nothing here runs again after the first step.

    Args:
        timeouts: After which an exchange is an error: one of the run, and one of a save.
    """
    accelerator, strategy, precision, reasons = choice
    device = accelerator.device(env.local_rank)
    timeout, save_timeout = timeouts
    owns_group = join(env, backend or accelerator.backend, timeout, device)
    board = message_board(env)
    collectives = Collectives(env, control_group(env, timeout), board)
    # One board for both, as an exchange of the one breaks off for a rank that was lost in the other, too.
    saving = Collectives(env, control_group(env, save_timeout), message_board(env, board), tells=True)
    control = Collectives(env, control_group(env, timeout), board)
    data = DataRanks(collectives, strategy.ranks_per_batch) if strategy.ranks_per_batch > 1 else collectives
    precision.setup(device.type)
    guard = None
    if non_finite is not None and non_finite.policy != "ignore":
        # One norm of all gradients tells of them all.
        apart = strategy.shares_gradients and not (clipping and clipping.value is None)
        side = Collectives(env, gradient_group(env, timeout), board) if apart and env.world_size > 1 else None
        guard = Guard(non_finite, precision=precision, state=state, ranks=collectives, side=side)
    engine = Engine(
        accelerator=accelerator,
        strategy=strategy,
        precision=precision,
        data=data,
        device=device,
        state=state,
        clipping=clipping,
        guard=guard,
    )
    engine.gauges.ranks = collectives
    return Wiring(
        engine, collectives, data, saving, control, device, accelerator.pin_memory, owns_group, reasons
    )


def _accelerator(spec: Any, reasons: list[str]) -> Accelerator:
    if spec != "auto":
        chosen = _built(ACCELERATORS, spec, "accelerator", Accelerator)
        reasons.append(f"accelerator={chosen.name}: as given")
        return chosen
    kinds = [cls for cls in _classes(ACCELERATORS, Accelerator) if cls.auto_rank is not None]
    for cls in sorted(kinds, key=lambda cls: cls.auto_rank or 0, reverse=True):
        found = cls()
        if found.is_available():
            reasons.append(f"accelerator={found.name}: 'auto', {found.count()} visible")
            return found
    raise IncompatibleError("accelerator='auto': none of the known kinds of hardware is available")


def _strategy(spec: Any, env: ProcessEnv, reasons: list[str]) -> Strategy:
    if spec != "auto":
        chosen = _built(STRATEGIES, spec, "strategy", Strategy)
        reasons.append(f"strategy={chosen.name}: as given")
        return chosen
    wanted = "several processes" if env.world_size > 1 else "one process"
    for cls in _classes(STRATEGIES, Strategy):
        if cls.auto_for == wanted:
            reasons.append(f"strategy={cls.name}: 'auto', {_processes(env)}")
            return cls()
    raise IncompatibleError(f"strategy='auto': no strategy offers itself for {wanted}")


def _check_hardware(accelerator: Accelerator, strategy: Strategy, precision: Precision) -> None:
    if not accelerator.is_available():
        usable = [c.name for c in _classes(ACCELERATORS, Accelerator) if c().is_available()]
        raise IncompatibleError(
            f"accelerator={accelerator.name!r} cannot be used here: {accelerator.why_unavailable()}; "
            f"use accelerator='auto', or one of: {', '.join(usable)}"
        )
    if accelerator.name not in strategy.accelerators:
        raise IncompatibleError(
            f"strategy={strategy.name!r} does not run on accelerator={accelerator.name!r}; "
            f"it runs on {', '.join(sorted(strategy.accelerators))}"
        )
    if accelerator.name not in precision.accelerators:
        raise IncompatibleError(
            f"precision={precision.name!r} does not work on accelerator={accelerator.name!r}; "
            f"it works on {', '.join(sorted(precision.accelerators))}"
        )
    if strategy.precisions is not None and precision.name not in strategy.precisions:
        raise IncompatibleError(
            f"precision={precision.name!r} does not work with strategy={strategy.name!r}; "
            f"choose one of {', '.join(sorted(strategy.precisions))}"
        )


def _check_processes(strategy: Strategy, env: ProcessEnv) -> None:
    if strategy.needs_process_group and not env.launched:
        raise IncompatibleError(
            f"strategy={strategy.name!r} needs several processes, but this is a lone one; start it with\n"
            f"  {torchrun_command()}\n"
            "or use strategy='auto', which takes what it is launched with"
        )
    if env.world_size % strategy.multiple_of:
        raise IncompatibleError(
            f"strategy={strategy.name!r} as it is set needs a multiple of {strategy.multiple_of} ranks, but "
            f"WORLD_SIZE={env.world_size}; launch another number, or change its settings"
        )
    if not strategy.needs_process_group and env.world_size > 1:
        fitting = [cls.name for cls in _classes(STRATEGIES, Strategy) if cls.needs_process_group]
        raise IncompatibleError(
            f"strategy={strategy.name!r} runs in one process, but {env.world_size} were launched; "
            f"use one of {', '.join(map(repr, fitting))}, or strategy='auto'"
        )


def _classes(registry: Registry, base: type[T]) -> list[type[T]]:
    """Built-in and registered classes of a kind, each once."""
    found = (entry for entry in registry.entries().values() if isinstance(entry, type))
    return [cls for cls in dict.fromkeys(found) if issubclass(cls, base)]


def _built(registry: Registry, spec: Any, where: str, base: type[T]) -> T:
    if isinstance(spec, int) and not isinstance(spec, bool):
        spec = str(spec)  # precision=16
    _refuse_foreign(spec, where)
    built = registry.build(spec, where=where)
    if not isinstance(built, base):
        known = "a name" if not isinstance(spec, Mapping) else "'type'"
        raise ConfigError(
            f"{where}={spec!r} is no {base.__name__}; give {known} of: {', '.join(registry.names())}"
        )
    return built


def _refuse_foreign(spec: Any, where: str) -> None:
    """Words of other frameworks, whose near misses here would mislead."""
    name = spec.get("type") if isinstance(spec, Mapping) else spec
    kind, _, number = str(name).partition(":")
    here = _FOREIGN.get((where, str(name)))
    if here is not None:
        raise UnknownNameError(f"{where}={name!r} is not known here; use {here}")
    if where == "accelerator" and isinstance(name, str) and number.isdecimal():
        raise UnknownNameError(
            f"accelerator={name!r}: a device is chosen for each process by the launcher; use "
            f"accelerator={kind!r}, and CUDA_VISIBLE_DEVICES={number} in the environment to pick one"
        )


def _processes(env: ProcessEnv) -> str:
    return f"WORLD_SIZE={env.world_size}" if env.launched else "not launched with ranks"
