"""Whole parameters, each up to date on one rank, brought to all."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_AT_ONCE = 64 * 2**20
"""Bytes of all ranks that are packed into one exchange; what exceeds a rank's part of that goes by itself."""

# torch 2.13 gave it another name, and warns of the old one.
_all_gather: Callable[..., object] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """Gives every rank the values that parameters have on their owners.

    Small ones are packed and gathered, with as many bytes from each rank; large ones are sent from where they
    lie. Nothing here waits for a device.
    """

    def __init__(self, owned: Sequence[tuple[Tensor, int]], rank: int, ranks: int) -> None:
        """
        Args:
            owned: Parameters and their owners, in the same order on all ranks.
        """
        self._rank = rank
        self._alone = ranks == 1
        room = _AT_ONCE // ranks
        apart = {p for p, _ in owned if p.nbytes > room or not _is_dense(p)}
        self._apart = [(p, owner) for p, owner in owned if p in apart]
        kinds: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
        for parameter, owner in owned:
            if parameter.nbytes and parameter not in apart:
                kind = kinds.setdefault((parameter.dtype, parameter.device), [[] for _ in range(ranks)])
                kind[owner].append(parameter)
        self._rounds = [one for parts in kinds.values() for one in _rounds(parts, room)]

    @torch.no_grad()
    def __call__(self) -> None:
        if self._alone:
            return
        for parameter, owner in self._apart:
            _send(parameter, owner)
        for one in self._rounds:
            one.gather(self._rank)


class _Round(NamedTuple):
    """One exchange of small parameters of a dtype: those of each rank."""

    parts: list[list[Tensor]]

    def gather(self, rank: int) -> None:
        room = max(sum(p.numel() for p in part) for part in self.parts)
        like = next(p for part in self.parts for p in part)
        mine = torch.empty(room, dtype=like.dtype, device=like.device)
        here = [_flat(p) for p in self.parts[rank]]
        if here:
            torch.cat(here, out=mine[: sum(p.numel() for p in here)])
        every = torch.empty(room * len(self.parts), dtype=like.dtype, device=like.device)
        # As bytes: a backend need not know the number format.
        _all_gather(every.view(torch.uint8), mine.view(torch.uint8))
        into, values = list[Tensor](), list[Tensor]()
        for other, part in enumerate(self.parts):
            if other != rank and part:
                flat = [_flat(p) for p in part]
                at = other * room
                into += flat
                values += every[at : at + sum(f.numel() for f in flat)].split([f.numel() for f in flat])
        if into:
            torch._foreach_copy_(into, values)


def _rounds(parts: list[list[Tensor]], room: int) -> list[_Round]:
    """Cut what ranks have into exchanges of `room` bytes from each at most."""
    cut = [_cut(part, room) for part in parts]
    number = max(map(len, cut))
    return [_Round([one[at] if at < len(one) else [] for one in cut]) for at in range(number)]


def _cut(parameters: list[Tensor], room: int) -> list[list[Tensor]]:
    pieces: list[list[Tensor]] = []
    left = 0
    for parameter in parameters:
        if parameter.nbytes > left:
            pieces.append([])
            left = room
        pieces[-1].append(parameter)
        left -= parameter.nbytes
    return pieces


def _send(parameter: Tensor, owner: int) -> None:
    values = parameter.detach()
    if _is_dense(values):
        dist.broadcast(_flat(parameter).view(torch.uint8), src=owner)
        return
    packed = values.contiguous()
    dist.broadcast(packed.view(-1).view(torch.uint8), src=owner)
    values.copy_(packed)


def _flat(parameter: Tensor) -> Tensor:
    """Its memory, as numbers in a row."""
    return parameter.detach().as_strided((parameter.numel(),), (1,))


def _is_dense(values: Tensor) -> bool:
    """Whether it fills its memory without gaps, in whatever order of dimensions."""
    return values.is_contiguous() or torch.empty_like(values, device="meta").stride() == values.stride()
