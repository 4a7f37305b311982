"""A model in parts, gathered block by block."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stratrun import deferred, spread
from stratrun.errors import ModelError
from stratrun.strategies import averaging
from stratrun.strategies.base import Initial, Strategy
from stratrun.strategies.buffers import saved_buffers, take_from_main
from stratrun.strategies.shard_options import ShardOptions

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from stratrun.strategies.sharding import Sharded


class ShardedStrategy(Strategy):
    """Each rank holds a part of every parameter; a block is gathered while it is computed.

    Subclasses say over which mesh.
    """

    accelerators: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    defers_init = True
    collective_forward = True
    shares_gradients = True

    def __init__(self, options: ShardOptions) -> None:
        options.check(f"strategy={self.name!r}")
        self._options = options
        self.keeps_gradients: bool = options.accumulate == "unsharded"
        self._sharded: Sharded
        self._whole: list[nn.Parameter] = []
        self._hooked: set[nn.Parameter] = set()
        self._wrapped_before = False
        # Within `no_sync`, and whether the next forward pass takes the main rank's buffers.
        self._open = False
        self._exchanges_buffers = True

    @abstractmethod
    def mesh(self, device: torch.device) -> "DeviceMesh":
        """Of one dimension to shard over, or of two, the first of replicas."""

    def divide(self, module: nn.Module, device: torch.device) -> None:
        """Spread parameters over ranks that work on the same samples, before they are spread over others."""
        return None

    def place(
        self,
        module: nn.Module,
        device: torch.device,
        *,
        compute_dtype: torch.dtype,
        initial: Initial | None = None,
    ) -> None:
        # Only now: importing it takes half a second, and all strategies are imported to choose one.
        from stratrun.strategies.sharding import model_of, refuse_lazy, shard

        refuse_lazy(model_of(module))
        if initial is None:
            take_from_main([*module.parameters(), *module.buffers()], device)
        self.divide(module, device)
        self._sharded = shard(
            module,
            self.mesh(device),
            self._options,
            device=device,
            compute_dtype=compute_dtype,
            what=f"strategy={self.name!r}",
        )
        if initial is not None:
            self._give_memory(module, device)
        # Only now: giving memory puts others in their place.
        self._whole = [p for name, p in module.named_parameters() if name in self._sharded.whole]
        if initial is not None:
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                spread.fill(tensor.detach(), initial(name))
        module.register_forward_pre_hook(self._before_forward, prepend=True)
        module.register_forward_hook(_open_up, prepend=True)
        module.register_forward_hook(self._after_forward)

    def _give_memory(self, module: nn.Module, device: torch.device) -> None:
        if not self._options.offload:
            deferred.give_memory(module, device)
            return
        deferred.give_memory(module, torch.device("cpu"))
        whole = [p for name, p in module.named_parameters() if name in self._sharded.whole]
        for tensor in [*whole, *module.buffers()]:
            tensor.data = tensor.data.to(device)

    def wrap(self, module: nn.Module, device: torch.device, *, partial_backward: bool) -> nn.Module:
        for parameter in self._whole:
            if parameter.requires_grad and parameter not in self._hooked:
                parameter.register_post_accumulate_grad_hook(self._average)
                self._hooked.add(parameter)
        if self._wrapped_before:
            for unit in self._sharded.units:
                # Also takes note of what is to be trained now.
                unit.unshard()
                unit.reshard()
        self._wrapped_before = True
        return module

    @contextmanager
    def no_sync(self, wrapped: nn.Module) -> Iterator[None]:
        self._open = True
        self._reduce_scatter(not self.keeps_gradients)
        try:
            yield
        finally:
            self._open = False
            self._reduce_scatter(True)

    def _reduce_scatter(self, enabled: bool) -> None:
        if self.keeps_gradients:
            for unit in self._sharded.units:
                unit.set_requires_gradient_sync(enabled, recurse=False)

    def reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        if not self.keeps_gradients:
            return
        # Nothing public reduces gradients that were kept back, but a further backward pass. What ends such
        # a pass does it for all that it finds kept.
        state = self._sharded.root._get_fsdp_state()
        if state._is_root:
            state._root_post_backward_final_callback()
        self._average_whole()

    def _average_whole(self) -> None:
        """Average gradients of parameters that every rank has, those that some rank has one of."""
        for parameter in averaging.reached([p for p in self._whole if p.requires_grad]):
            self._average(parameter)

    def _average(self, parameter: Tensor) -> None:
        """Average one over the ranks; what of it is averaged already stays what it is."""
        if self._open and self.keeps_gradients:
            return
        gradient = parameter.grad
        assert gradient is not None
        gradient.div_(dist.get_world_size())
        dist.all_reduce(torch.view_as_real(gradient) if gradient.is_complex() else gradient)

    def mean(self, value: Tensor) -> Tensor:
        return averaging.mean(value)

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float, norm_type: float) -> Tensor:
        from stratrun.strategies import norms

        return norms.clip(parameters, max_norm, norm_type)

    def sync_buffers(self, module: nn.Module) -> None:
        if self._options.broadcast_buffers:
            buffers = list(module.buffers())
            if buffers:
                take_from_main(buffers, buffers[0].device)

    def own_state(self, wrapped: nn.Module) -> dict[str, Any]:
        # Buffers that the next forward pass takes from the main rank need not be kept, nor those of
        # the main rank itself, which are part of the logical state.
        if self._exchanges_buffers and self._options.broadcast_buffers:
            return {}
        buffers = {} if dist.get_rank() == 0 else saved_buffers(wrapped)
        return {"exchanged": self._exchanges_buffers, "buffers": buffers}

    def load_own_state(self, wrapped: nn.Module, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self._exchanges_buffers = state["exchanged"]
        own = saved_buffers(wrapped)
        for name, value in state["buffers"].items():
            if name in own:
                own[name].copy_(value)

    def _before_forward(self, module: nn.Module, arguments: Any) -> None:
        # What a pass without a backward pass has left gathered is from before the last update.
        for unit in self._sharded.stay_gathered:
            unit.reshard()
        if not torch.is_grad_enabled():
            return
        # As with replicas: not within an accumulation window, but once at its start.
        if self._exchanges_buffers:
            self.sync_buffers(module)
        self._exchanges_buffers = not self._open

    def _after_forward(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            for unit in self._sharded.stay_gathered:
                unit.reshard()
        return output.whole if isinstance(output, _Opened) else output


class _Opened(NamedTuple):
    """An output beside its tensors."""

    tensors: tuple[Tensor, ...]
    whole: Any


def _open_up(module: nn.Module, arguments: Any, output: Any) -> Any:
    """Show the tensors of an object, by which gathering and averaging in the backward pass are started."""
    if not torch.is_grad_enabled() or isinstance(output, Tensor | dict | list | tuple):
        return output
    values = (
        list(output.values())
        if isinstance(output, Mapping)
        else list(getattr(output, "__dict__", {}).values())
    )
    values.append(getattr(output, "loss", None))
    tensors = tuple(value for value in values if isinstance(value, Tensor))
    if not tensors:
        raise ModelError(
            f"a step of the model returned {type(output).__name__}, in which no tensor is found to run "
            "backward from; a model that is spread over ranks must return a tensor, or a dict, list or tuple"
        )
    return _Opened(tensors, output)
