"""From a config to the figures of a plan."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from stratrun.cli.job import form_of
from stratrun.cli.plan.ledger import Peak, plain
from stratrun.cli.plan.meter import Traffic
from stratrun.cli.plan.simulation import Simulation, chosen, first_batch
from stratrun.cli.plan.stand_in import pretended_group
from stratrun.data.batch import batch_size_of
from stratrun.distributed import ProcessEnv
from stratrun.errors import StratrunError
from stratrun.hooks.averaging import AveragingHook
from stratrun.loops.schedule import accumulation_of
from stratrun.runner import checks, parts
from stratrun.runner.form import Form, require

_PER_NODE = 8


@dataclass(slots=True)
class Plan:
    """What a run needs. Sizes are in bytes, and those of memory those of rank 0, which has the most."""

    world_size: int
    strategy: str
    precision: str
    mesh: dict[str, int]
    batch: int | None
    """Samples of a batch on one rank."""
    data_ranks: int
    """How many ranks have different samples."""
    accumulate: int
    parameters: int
    trainable: int
    layouts: dict[str, tuple[int, int]]
    """How parameters lie on the mesh: how many do so, and of how many numbers."""
    memory: dict[str, int]
    """The most of each kind at any time."""
    peak: Peak | None
    """The moment of a step at which most is held; None if the step could not be gone through."""
    traffic: Traffic
    """What is exchanged for one update."""
    checkpoint: int
    bandwidth: float
    remarks: list[str] = field(default_factory=list)


def plan(given: Namespace, bandwidth: float) -> Plan:
    """What the run of a config needs.

    Raises:
        StratrunError: it could not be started like this.
    """
    form = form_of(given, [f"strategy={given.strategy}"] if given.strategy else ())
    require(form, "train")
    checks.check(form, "train")
    per_node = given.per_node or min(given.world_size, _PER_NODE)
    env = ProcessEnv(rank=0, local_rank=0, world_size=given.world_size, launched=True)
    with launched(env, per_node), pretended_group(env) as ranks:
        simulation = Simulation(form, chosen(form, env), ranks)
        simulation.build()
        hooks = _averaging(form, simulation)
        accumulate = _accumulate(form, simulation)
        batch = first_batch(form, simulation.engine, simulation.data_ranks, given.batch_size)
        if (loader := simulation.engine.batch.loader) is not None:
            simulation.remarks.append(
                f"of several loaders, this is for batches as {loader!r} gives them; for those of another, "
                "put it first"
            )
        went = _went_through(simulation, batch, accumulate)
        return _plan(given, simulation, hooks, batch, accumulate, went, bandwidth)


def _accumulate(form: Form, simulation: Simulation) -> int:
    """Batches of an update: the most of them, where their number changes, as that exchanges most."""
    accumulation = accumulation_of(form.train_cfg)
    if isinstance(accumulation.plain, list):
        simulation.remarks.append(
            f"accumulate={accumulation.plain} changes; the figures are of updates of {accumulation.most} "
            "batches"
        )
    return accumulation.most


@contextmanager
def launched(env: ProcessEnv, per_node: int) -> Iterator[None]:
    """What a launcher would tell the ranks, for whoever asks it."""
    told = {
        "RANK": env.rank,
        "LOCAL_RANK": env.local_rank,
        "WORLD_SIZE": env.world_size,
        "LOCAL_WORLD_SIZE": per_node,
        "GROUP_WORLD_SIZE": max(env.world_size // per_node, 1),
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _averaging(form: Form, simulation: Simulation) -> list[AveragingHook]:
    """The hooks that keep averages of the weights, with their averages."""
    hooks = [hook for hook in parts.build_hooks(form) if isinstance(hook, AveragingHook)]
    with simulation.pretence, torch.no_grad():
        for hook in hooks:
            hook.start(simulation.engine.model)
    return hooks


def _went_through(simulation: Simulation, batch: Any, accumulate: int) -> bool:
    try:
        simulation.run(batch, accumulate)
    except StratrunError as error:
        _give_up(simulation, str(error))
    except Exception as error:  # whatever the model does that needs values
        _give_up(simulation, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    else:
        if simulation.pretence.reads:
            simulation.remarks.append(
                f"{simulation.pretence.reads} values of tensors were read in three updates; they are not "
                "there and were taken for 0, so what depends on them may be otherwise"
            )
        return True
    return False


def _give_up(simulation: Simulation, why: str) -> None:
    simulation.remarks.append(
        f"a step could not be gone through without values ({why}), so activations, the peak and exchanges "
        "are not known"
    )
    for parameter in simulation.engine.state_module.parameters():
        parameter.grad = None
    simulation.update_alone()


def _plan(
    given: Namespace,
    simulation: Simulation,
    hooks: list[AveragingHook],
    batch: Any,
    accumulate: int,
    went: bool,
    bandwidth: float,
) -> Plan:
    engine, choice = simulation.engine, simulation.choice
    parameters = list(engine.state_module.parameters())
    memory = _named(simulation, hooks)
    peak, most = simulation.pretence.ledger.most()
    if went:
        memory |= most
    return Plan(
        world_size=given.world_size,
        strategy=choice.strategy.name,
        precision=choice.precision.name,
        mesh=_mesh(parameters, given.world_size),
        batch=batch_size_of(batch),
        data_ranks=simulation.data_ranks,
        accumulate=accumulate,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        layouts=_layouts(parameters),
        memory={kind: size for kind, size in memory.items() if size},
        peak=peak if went else None,
        traffic=simulation.traffic,
        checkpoint=_checkpoint(simulation, hooks),
        bandwidth=bandwidth,
        remarks=simulation.remarks,
    )


def _named(simulation: Simulation, hooks: list[AveragingHook]) -> dict[str, int]:
    """Say what lasting memory is for. Returns how much it is."""
    engine, ledger = simulation.engine, simulation.pretence.ledger
    module = engine.state_module
    states = [tree_leaves(dict(one.state)) for one in engine.optimizers.values()]
    averages = [list(hook.state_dict()["averages"].values()) for hook in hooks]
    own = {id(t) for t in (*module.parameters(), *module.buffers())}
    sizes = {
        "weights": ledger.name(module.parameters(), "weights"),
        "buffers": ledger.name(module.buffers(), "buffers"),
        "gradients": simulation.gradients,
        "optimizer": ledger.name(_tensors(states), "optimizer"),
        "averages": ledger.name((t for t in _tensors(averages) if id(t) not in own), "averages"),
    }
    return sizes


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(tree) if isinstance(one, Tensor))


def _mesh(parameters: Iterable[Tensor], world_size: int) -> dict[str, int]:
    meshes = [p.device_mesh for p in parameters if isinstance(p, DTensor)]
    if not meshes:
        return {"replicate": world_size}
    mesh = max(meshes, key=lambda one: one.ndim)
    names = mesh.mesh_dim_names or tuple(f"dimension {n}" for n in range(mesh.ndim))
    return dict(zip(names, mesh.shape, strict=True))


def _layouts(parameters: Iterable[nn.Parameter]) -> dict[str, tuple[int, int]]:
    counts, numbers = Counter[str](), Counter[str]()
    for parameter in parameters:
        layout = _layout(parameter)
        counts[layout] += 1
        numbers[layout] += parameter.numel()
    return {layout: (counts[layout], numbers[layout]) for layout in counts}


def _layout(parameter: Tensor) -> str:
    if not isinstance(parameter, DTensor):
        return "whole on each rank"
    placements = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    split = [
        f"dimension {placement.dim} over {size}"  # type: ignore[attr-defined]
        for placement, size in placements
        if placement.is_shard() or hasattr(placement, "dim")
    ]
    return f"split, {' and '.join(split)}" if split else "whole on each rank"


def _checkpoint(simulation: Simulation, hooks: list[AveragingHook]) -> int:
    """The size of the tensors that one has, each once."""
    with simulation.pretence:
        state: Any = [simulation.engine.saved.shared_state(), *(hook.state_dict() for hook in hooks)]
        sizes: dict[Any, int] = {}
        for tensor in _tensors(state):
            part = next(plain(tensor))
            place = (id(part.untyped_storage()), part.storage_offset(), tuple(tensor.shape))
            sizes[place] = tensor.numel() * tensor.element_size()
    return sum(sizes.values()) + _divided(simulation)


def _divided(simulation: Simulation) -> int:
    """What optimizers keep on all ranks, of which each has a part: as here for each byte of a parameter.

    The rest of the state has none of it, as torch sees no tree in `Divided`.
    """
    shards, found = simulation.engine.saved.shards, 0
    if shards is None:
        return found
    for one in simulation.engine.optimizers.values():
        trained = [p for group in one.param_groups for p in group["params"] if p.requires_grad]
        here = sum(p.nbytes for p in trained if shards.holds(p))
        every = sum(p.nbytes for p in trained)
        state = sum(t.numel() * t.element_size() for t in _tensors(dict(one.state)))
        found += state * every // here if here else 0
    return found
