"""The model and its loss as they come into being: the same on every process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stratrun import deferred
from stratrun.accelerators.base import Accelerator
from stratrun.engine.placed import Placed
from stratrun.engine.saved import Exchange
from stratrun.engine.step_module import StepModule
from stratrun.errors import ConfigError
from stratrun.precision.base import Precision
from stratrun.seed import host_rng_state, set_host_rng_state
from stratrun.spread import is_spread
from stratrun.strategies.base import Initial, Strategy

Loss = Callable[..., Any]


def placed(
    build: Callable[[], nn.Module],
    build_loss: Callable[[], Loss | None],
    transforms: Sequence[Callable[[nn.Module], None]],
    *,
    strategy: Strategy,
    precision: Precision,
    accelerator: Accelerator,
    device: torch.device,
    data: Exchange,
) -> Placed:
    """Build a model and its loss, transform the model, and have the strategy place both."""

    def make() -> StepModule:
        return StepModule(build(), build_loss())

    with _drawing_as_main(data, accelerator, device):
        module, values = deferred.build(make) if strategy.defers_init else (make(), None)
    assert isinstance(module, StepModule)
    if any(is_spread(parameter) for parameter in module.parameters()):
        raise ConfigError(
            f"model: this {type(module.model).__name__} was spread over ranks by an earlier run; build a new "
            "one for this run (model=dict(type=...) does), and load what that has learnt with load_from="
        )
    initial: Initial | None = values
    if values is not None and len(set(data.gather(values.digest()))) > 1:
        # The code that built it goes by what differs between processes: a clock, an unseeded generator.
        initial = _from_main(values, data)
    for transform in transforms:
        transform(module.model)
    return Placed(module, initial=initial, device=device, precision=precision, strategy=strategy)


def _from_main(values: Initial, data: Exchange) -> Initial:
    """The values that the main rank has. All ranks ask for the same ones in the same order."""

    def value(name: str) -> Tensor:
        whole = data.from_main(values(name) if data.rank == 0 else None)
        assert whole is not None
        return whole

    return value


@contextmanager
def _drawing_as_main(data: Exchange, accelerator: Accelerator, device: torch.device) -> Iterator[None]:
    """Draw the main rank's random numbers; all others go on with their own afterwards, as if none were."""
    if data.world_size == 1:
        yield
        return
    own = host_rng_state(), accelerator.rng_state(device)
    host, on_device = data.from_main(own)
    if data.rank == 0:
        yield
        return
    set_host_rng_state(host)
    accelerator.set_rng_state(device, on_device)
    try:
        yield
    finally:
        set_host_rng_state(own[0])
        accelerator.set_rng_state(device, own[1])
