"""Whether losses and gradients are finite, and what becomes of an update where they are not."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stratrun.distributed import Collectives
from stratrun.engine import direct
from stratrun.engine.finite_told import Loss, Place, told
from stratrun.engine.kept_buffers import KeptBuffers
from stratrun.engine.late import Late
from stratrun.engine.loss_limit import LossLimit
from stratrun.engine.non_finite import NonFinite
from stratrun.errors import NonFiniteError
from stratrun.host_numbers import finite_in_host, number_at
from stratrun.precision.base import Precision
from stratrun.spread import is_spread, local_part
from stratrun.state import BatchInfo, TrainState

_LOG = logging.getLogger("stratrun.engine")
_ENDS = (
    "; nothing was updated, and parameters and optimizers are as they were before. Look at these samples, or "
    "lower the learning rate, or limit gradients with clip_grad=1.0; non_finite='skip' leaves such updates "
    "out"
)
# Torch's own check for loss scaling, with a scale of one: nothing public looks at many tensors at once and
# answers on the device.
_find_non_finite = torch._amp_foreach_non_finite_check_and_unscale_


class Guard:
    """Decides before each update whether it is made, by what all ranks have alike.

    The backward pass of a loss that is not finite is seeded with NaN, so that the gradients tell of it on
    every rank that has a part in them. Whether those are finite is read from host memory without an
    operation. Some devices drop an update by themselves, which is heard of later. Ranks exchange nothing,
    unless each has other gradients: then by `side`, beside those of the run, where no norm is of all.
    """

    def __init__(
        self,
        settings: NonFinite,
        *,
        precision: Precision,
        state: TrainState,
        ranks: Collectives,
        side: Collectives | None = None,
    ) -> None:
        self.settings = settings
        self.batch: BatchInfo = BatchInfo()
        self.roll_back: Callable[[str], str] | None = None
        """Puts the run back, given why, and tells to where."""
        self.owns_overflow: bool = precision.drops_overflow
        self._precision = precision
        self._plain_backward = type(precision).backward is Precision.backward
        self._state = state
        self._ranks = ranks
        self._side = side
        self._parts = False
        self._flag = torch.zeros(())
        self._one = torch.ones(())
        self._in_host = number_at(self._flag)
        self._late: Late | None = None
        self.buffers: KeptBuffers | None = None
        # In host memory only those that are not finite; on a device all, as which are is not known.
        self._losses: list[Loss] = []
        self.limit: LossLimit = LossLimit()
        self.captured = False  # While it is, what the host does of an update is left to `replayed`.

    def watch(self, module: nn.Module) -> None:
        """Learn what is trained."""
        if self.settings.policy == "skip" and self.buffers is None:
            self.buffers = KeptBuffers(module)

    def prepare(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Learn what is updated, and how."""
        parameters = [p for one in optimizers.values() for group in one.param_groups for p in group["params"]]
        self._parts = any(map(is_spread, parameters))
        device = parameters[0].device if parameters else torch.device("cpu")
        self._flag, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self.limit.to(device)
        self._in_host = number_at(self._flag)
        if device.type == "cuda" and not self.owns_overflow:
            self._late = Late.of(self.settings, optimizers, self._flag)

    @property
    def reason(self) -> str | None:
        """What it is set to, where that costs something."""
        if self._in_host is not None or self._late is not None or self.owns_overflow:
            return None
        what = "one fused optimizer does" if self.settings.policy == "skip" else "fused optimizers do"
        policy = self.settings.policy
        return f"non_finite={policy}: waits for the device before each update, which {what} without"

    # -- what updates call

    def backward(self, loss: Tensor, given: Tensor) -> None:
        """Run backward from `loss`, which was made of the one `given` by the user."""
        finite = self.limit.admits(given, self.batch)
        if finite:
            if self._plain_backward and self._one.is_cpu and loss.dtype is torch.float32 and not loss.dim():
                direct.backward(loss, self._one)
            else:
                self._precision.backward(loss)
            return
        bare = given.detach()
        self._losses.append(Loss.of(bare, self.batch, self._state, self.limit.value))
        if finite is None and self._plain_backward and type(loss) is Tensor:
            # One where the loss is finite, else NaN, without a look at it.
            seed = torch.add(self._one, loss.detach(), alpha=0)
            loss.backward(self.limit.marked(seed, bare, self.batch).to(loss.dtype))
        else:
            self._precision.backward(loss * self.limit.marked(1 + 0 * bare, bare, self.batch))

    def look(self, gradients: list[Tensor]) -> None:
        """Take note of whether gradients are finite, before they are clipped."""
        if self._late is not None:
            self._late.begin()
        if self._parts:
            gradients = [local_part(gradient) for gradient in gradients]
        if not gradients:
            return
        try:
            _find_non_finite(gradients, self._flag, self._one)
        except RuntimeError:
            _look_at_each(gradients, self._flag)

    def look_at_norm(self, norm: Tensor) -> None:
        """The same, by their norm."""
        finite = finite_in_host(norm)
        if finite is None:
            self.look([norm])
        elif not finite and self._in_host is not None:
            self._in_host.value = 1.0

    def permits(self) -> bool:
        """Whether the update is made; to be asked when all gradients that it is made of were looked at.

        Raises NonFiniteError on all ranks, if the run is to end.
        """
        if self._side is not None:
            # One from several: kernels that ask it drop an update for a one alone.
            self._flag.copy_(self._side.sum(self._flag).clamp_(max=1))
        if self._late is not None:
            return self._launch(self._late)
        if not (bool(self._flag) if self._in_host is None else self._in_host.value):
            if self._losses:
                self._losses.clear()
            if self.buffers is not None:
                self.buffers.updated()
            return True
        self._flag.zero_()
        losses, self._losses = self._losses, []
        self._decide(losses)
        return False

    def replayed(self, loss: Tensor) -> bool:
        """The host's part of an update that was captured and is being made; as `permits`."""
        assert self._late is not None
        self._losses = [Loss.of(loss, self.batch, self._state, self.limit.value)]
        return self._told(self._late)

    def scaled(self, dropped: bool) -> None:
        """After an update of scaled gradients: decide, if the precision dropped it for a loss."""
        losses, self._losses = self._losses, []
        # An update is dropped on all ranks or on none, so that all come to the exchange.
        if dropped and any(self._ranks.gather(any(loss.is_bad for loss in losses))):
            self._precision.spare_scale()
            self._decide(losses)
        elif self.buffers is not None:
            self.buffers.updated()

    def settle(self) -> None:
        """Hear of all updates that were made; called alike on all ranks, before what they led to is kept.

        Raises NonFiniteError on all ranks, if the run is to end.
        """
        while self._late is not None and (found := self._late.next()) is not None:
            self._hear(found)

    def close(self) -> None:
        if self._side is not None:
            self._side.close()

    # -- what follows

    def _launch(self, late: Late) -> bool:
        """Begin an update that the device decides on, and hear of the one before it."""
        if self.buffers is not None:
            self.buffers.put_back(self._flag)
            self.buffers.updated()
        return self.captured or self._told(late)

    def _told(self, late: Late) -> bool:
        found, self._losses = late.launch(self._losses), []
        return found is None or not self._hear(found)

    def _hear(self, found: tuple[bool, list[Loss]]) -> bool:
        """What follows from an update that the device decided on. Returns whether the run was put back."""
        bad, losses = found
        if not bad:
            return False
        self._state.skipped += 1
        if self.settings.policy == "skip":
            # It was counted while nobody knew.
            self._state.step -= 1
        elif self._late is not None:
            self._late.clear()
        self._decide(losses)
        return self.settings.policy == "rollback"

    def _decide(self, losses: list[Loss]) -> None:
        # What is heard of late is of an iteration before the present one; each of its losses was kept.
        heard_late = self._late is not None
        text = told(losses, self._ranks, losses[-1].place if heard_late and losses else Place.of(self._state))
        policy = self.settings.policy
        if policy == "raise":
            _log(self._ranks, f"{text}{_ENDS}")
            raise NonFiniteError(f"{text}{_ENDS}", counted=heard_late)
        if policy == "skip":
            _log(self._ranks, f"{text}; the update is left out")
            if self.buffers is not None and not heard_late:
                self.buffers.put_back()
                self.buffers.updated()
            return
        assert self.roll_back is not None
        _log(self._ranks, f"{text}; {self.roll_back(text)}")


def _log(ranks: Collectives, text: str) -> None:
    if ranks.is_main:
        _LOG.warning("%s", text)


def _look_at_each(gradients: Sequence[Tensor], flag: Tensor) -> None:
    """Sparse and complex ones, and those of several devices, which no kernel takes together."""
    for gradient in gradients:
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        found = (~torch.isfinite(values)).any()
        flag.copy_(torch.maximum(flag, found.to(flag)))
