from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from stratrun.loops.base import BaseLoop
from stratrun.registry import LOOPS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@LOOPS.register_module()
class PredictLoop(BaseLoop):
    """The model's outputs for each sample of the data, in the order of the data set.

    Outputs are taken apart by sample where they have one row for each: tensors, lists, and
    mappings, tuples and dataclasses (as mappings) of these. What cannot be taken apart is returned
    batch by batch.
    """

    job = "predict"

    def __init__(self, runner: RunContext, dataloader: Any) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> list[Any]:
        runner = self.runner
        runner.call_hooks("before_predict")
        runner.call_hooks("before_predict_epoch")
        items: list[tuple[int, Any]] = []
        control, left = runner.control, runner.control.flagged or runner.state.urgent
        for idx, data_batch in enumerate(() if left else self.dataloader):
            runner.call_hooks("before_predict_iter", batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            runner.call_hooks("after_predict_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
            items += self._by_sample(idx, to_host(outputs))
            if control.flagged or (control.poll is not None and control.poll()):
                left = True
                break
        if control.meet(broke_off=left):
            runner.call_hooks("on_break_off")
            return []
        predictions = runner.engine.collect(items)
        runner.call_hooks("after_predict_epoch")
        runner.call_hooks("after_predict", predictions=predictions)
        return predictions

    def _by_sample(self, idx: int, outputs: Any) -> list[tuple[int, Any]]:
        batch = self.runner.engine.batch
        if batch.size == 0:
            return []
        positions = list(batch.positions) if batch.positions is not None else None
        rows = take_apart(outputs, batch.size) if batch.size is not None else None
        if rows is None:
            return [(positions[0] if positions else idx, outputs)]
        if positions is None:
            return [(idx, row) for row in rows]
        return list(zip(positions, rows, strict=True))


def take_apart(outputs: Any, size: int) -> list[Any] | None:
    """One entry for each of `size` samples; None where the outputs are not built like that."""
    if isinstance(outputs, torch.Tensor):
        return list(outputs.unbind()) if outputs.dim() and outputs.shape[0] == size else None
    if is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, Mapping):
        columns = {key: take_apart(value, size) for key, value in outputs.items()}
        # A value for the whole batch, such as its loss, says nothing of a sample.
        kept = {key: column for key, column in columns.items() if column is not None}
        return [{key: column[i] for key, column in kept.items()} for i in range(size)] if kept else None
    if isinstance(outputs, tuple) and outputs:
        parts = [take_apart(value, size) for value in outputs]
        whole = [part for part in parts if part is not None]
        return list(zip(*whole, strict=True)) if len(whole) == len(parts) else None
    if isinstance(outputs, list):
        return list(outputs) if len(outputs) == size else None
    return None


def to_host(value: Any) -> Any:
    """Outputs in host memory, where those of a whole data set have room."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_host(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_host(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        parts = [to_host(one) for one in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value
