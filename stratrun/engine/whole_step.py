"""The training step as one: compiled, captured, or both."""

from collections.abc import Callable
from typing import Any

import torch

from stratrun.blocks.compiled import Compiler, explained
from stratrun.engine import contract
from stratrun.engine.capture import Capture, CudaCapture
from stratrun.engine.engine import Engine
from stratrun.engine.graphable import refuse
from stratrun.engine.graphs import WARM_UP, GraphedStep
from stratrun.engine.step_module import StepModule
from stratrun.errors import ConfigError
from stratrun.spread import is_spread

CAPTURES: dict[str, Callable[[torch.device], Capture]] = {"cuda": CudaCapture}
"""By kind of device."""


class CompiledStep:
    """The `forward` of a `StepModule`, of which model and loss are compiled as one for training.

    Their backward pass is compiled with them, since it is derived from that one graph. It lies on the module
    as an attribute, below what strategies hang on a call of it. Evaluation is not compiled.
    """

    def __init__(self, module: StepModule, compiler: Compiler) -> None:
        self._module = module
        self._compiler = compiler
        self._build = object()
        self._call: contract.Call | None = None

    def __call__(self, batch: Any, mode: str, losses: bool = False) -> Any:
        if mode != "train":
            return StepModule.forward(self._module, batch, mode, losses)
        if self._call is None:
            self._call = contract.resolve(self._module.model, self._module.loss, mode, batch)
        args, kwargs = self._call.arguments(batch)
        compiled = self._compiler.of(_loss_of, self._build, "the training step")
        with explained(self._module.model):
            result = compiled(self._call.target, self._call.finish, batch, args, kwargs)
        return contract.losses_of(result, self._module.model) if losses else result


def _loss_of(
    target: Callable[..., Any],
    finish: Callable[[Any, Any], Any] | None,
    batch: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    result = target(*args, **kwargs)
    return result if finish is None else finish(result, batch)


def take_over(engine: Engine, compiler: Compiler | None, graphs: bool) -> list[str]:
    """Have the training step of an engine, made ready for training, compiled or captured.

    Returns:
        What was done, a line each.

    Raises:
        ConfigError: it cannot be, or not safely.
    """
    placed, guard = engine._placed, engine.guard
    if compiler is not None:
        if any(map(is_spread, placed.bare.parameters())):
            raise ConfigError(
                "compile: step=True is for weights that are whole, and strategy="
                f"{engine.settings['strategy']!r} spreads them over ranks, block by block; compile=True "
                "compiles the blocks"
            )
        placed.bare.forward = CompiledStep(placed.bare, compiler)  # type: ignore[method-assign]
    if not graphs:
        return []
    refuse(
        captures=engine._device.type in CAPTURES,
        device=engine._device.type,
        strategy=engine.settings["strategy"],
        scales=engine._precision.drops_overflow,
        accumulate=engine.settings.get("accumulate", 1),
        optimizers=engine.optimizers,
        guard=guard,
    )
    step = GraphedStep(
        engine.train_step,
        placed=placed,
        updates=engine._updates,
        guard=guard,
        batch=engine.batch,
        state=engine.state,
        capture=CAPTURES[engine._device.type](engine._device),
    )
    engine.train_step = step  # type: ignore[method-assign]
    for verb in ("forward", "backward", "step", "update"):
        setattr(engine, verb, _refusal(verb))
    return [f"compile: graphs=True: forward, backward and update are replayed, after {WARM_UP} steps as ever"]


def _refusal(verb: str) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"compile: graphs=True captures engine.train_step, and this loop calls engine.{verb}, a part "
            "of a step; leave graphs= out, or have the loop call train_step"
        )

    return refused
