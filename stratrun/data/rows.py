"""What a model returned for a batch, taken apart by sample."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor

from stratrun.state import BatchInfo


class Predicted(NamedTuple):
    """Outputs for one batch in host memory, whole: rows of a tensor are sent and saved with all of it."""

    number: int
    """The number of the batch in its pass."""
    size: int | None
    positions: Sequence[int] | None
    outputs: Any

    @classmethod
    def of(cls, batch: BatchInfo, number: int, outputs: Any) -> "Predicted":
        positions = batch.positions
        if positions is not None and not isinstance(positions, range):
            positions = list(positions)
        return cls(number, batch.size, positions, to_host(outputs))

    def rows(self) -> list[tuple[int, Any]]:
        """What there is for each sample, and the place of that in the pass.

        The place is that of the sample where it is known, else the number of the batch. Outputs that cannot
        be taken apart are one entry, in the place of the first sample.
        """
        if self.size == 0:
            return []
        parts = take_apart(self.outputs, self.size) if self.size is not None else None
        if parts is None:
            return [(self.positions[0] if self.positions else self.number, self.outputs)]
        if self.positions is None:
            return [(self.number, part) for part in parts]
        return list(zip(self.positions, parts, strict=True))


def take_apart(outputs: Any, size: int) -> list[Any] | None:
    """One entry for each of `size` samples; None where the outputs are not built like that."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind()) if outputs.dim() and outputs.shape[0] == size else None
    if is_array(outputs):
        return list(outputs) if outputs.ndim and outputs.shape[0] == size else None
    if is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, Mapping):
        columns = {key: take_apart(value, size) for key, value in outputs.items()}
        # A value for the whole batch, such as its loss, says nothing of a sample.
        kept = {key: column for key, column in columns.items() if column is not None}
        return [{key: column[i] for key, column in kept.items()} for i in range(size)] if kept else None
    if isinstance(outputs, tuple) and outputs:
        columns_of = [take_apart(value, size) for value in outputs]
        whole = [column for column in columns_of if column is not None]
        return list(zip(*whole, strict=True)) if len(whole) == len(columns_of) else None
    if isinstance(outputs, list):
        return list(outputs) if len(outputs) == size else None
    return None


def to_host(value: Any) -> Any:
    """Outputs in host memory of their own: a model may write those of the next batch over these."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if is_array(value):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: to_host(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_host(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        parts = [to_host(one) for one in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def is_array(value: Any, *, or_scalar: bool = False) -> bool:
    """Whether it is of NumPy, which is not imported for it: who has an array has imported it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, (numpy.ndarray, numpy.generic) if or_scalar else numpy.ndarray
    )
