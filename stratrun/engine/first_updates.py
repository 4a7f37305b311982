"""Parameters that are to be trained and learn nothing, told once by their names."""

import logging

from torch import Tensor, nn

from stratrun.engine.updates import Updates
from stratrun.errors import shortened

_LOG = logging.getLogger("stratrun.engine")


class FirstUpdates:
    """Looks at the first update of each optimizer for parameters that have no gradient until then.

    It stands in for `Updates.step` meanwhile, and gives way when all have updated. That is no error, as such
    a parameter only stays what it is; where others would wait for its gradient, the strategy says so.

    Args:
        named: What names are relative to.
        tells: Whether anybody is to hear of it, from this process.
    """

    def __init__(self, updates: Updates, named: nn.Module, *, tells: bool) -> None:
        self._updates = updates
        self._named = named
        self._tells = tells
        self._reached: set[int] = set()
        self._waiting: set[str] = set()
        self._told: set[str] = set()

    def begin(self) -> None:
        """Look from now on: at the start, and when other parameters than before are trained."""
        if self._tells and self._updates.optimizers:
            self._reached.clear()
            self._waiting = set(self._updates.optimizers)
            self._updates.step = self._step  # type: ignore[method-assign]

    def _step(self, optimizer: str | None = None) -> Tensor | None:
        """One update; see `Updates.step`."""
        self._reached.update(id(p) for p in self._named.parameters() if p.grad is not None)
        self._waiting -= set(self._updates.optimizers) if optimizer is None else {optimizer}
        if not self._waiting:
            del self._updates.step
            self._tell()
        return Updates.step(self._updates, optimizer)

    def _tell(self) -> None:
        wanted = [name for name, p in self._named.named_parameters() if p.requires_grad]
        reached = {name for name, p in self._named.named_parameters() if id(p) in self._reached}
        missed = [name for name in wanted if name not in reached | self._told]
        self._told.update(missed)
        if missed:
            _LOG.warning(
                "no gradient came to %s in the first update: they had no part in the loss. A parameter that "
                "never has one learns nothing; use it in the loss, or freeze it (requires_grad_(False))",
                shortened(missed),
            )
