"""What all ranks have whole: brought to the values of the main rank."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BYTES_AT_ONCE = 32 * 2**20


@torch.no_grad()
def take_from_main(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Give tensors the values that they have on the main rank, wherever they lie.

    Args:
        device: Where ranks exchange.
    """
    if dist.get_world_size() == 1:
        return
    waiting: list[Tensor] = []
    size = 0
    for tensor in tensors:
        waiting.append(tensor)
        size += tensor.nbytes
        if size >= _BYTES_AT_ONCE:
            _take(waiting, device)
            waiting, size = [], 0
    if waiting:
        _take(waiting, device)


def _take(tensors: Sequence[Tensor], device: torch.device) -> None:
    # As bytes, so that one exchange serves all number formats, those included that a backend does not know.
    packed = torch.cat([t.detach().contiguous().reshape(-1).view(torch.uint8).to(device) for t in tensors])
    dist.broadcast(packed, src=0)
    for tensor, part in zip(tensors, packed.split([t.nbytes for t in tensors]), strict=True):
        # A part may begin where a wider format must not.
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that the user wants in a state dict."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    }
