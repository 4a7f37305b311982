from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stratrun.data.rows import Predicted
from stratrun.errors import ConfigError
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

    Args:
        collect: Whether to return them, on every process. False for what does not fit in memory: `run`
            returns an empty list, and hooks such as `PredictionWriterHook` see the outputs as they come.
    """

    job = "predict"

    def __init__(self, runner: RunContext, dataloader: Any, *, collect: bool = True) -> None:
        super().__init__(runner, dataloader)
        PredictLoop.check({"collect": collect})
        self.collect = collect

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        collect = options.get("collect", True)
        if not isinstance(collect, bool):
            raise ConfigError(f"collect={collect!r} must be True or False")

    def run(self) -> list[Any]:
        runner = self.runner
        runner.call_hooks("before_predict")
        runner.call_hooks("before_predict_epoch")
        done: list[tuple[int, Predicted]] = []
        control, left = runner.control, runner.control.flagged or runner.state.urgent
        for idx, data_batch in enumerate(() if left else self.dataloader):
            runner.call_hooks("before_predict_iter", batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            runner.call_hooks("after_predict_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
            if self.collect:
                done.append((idx, Predicted.of(runner.engine.batch, idx, outputs)))
            if control.flagged or (control.poll is not None and control.poll()):
                left = True
                break
        if control.meet(broke_off=left):
            runner.call_hooks("on_break_off")
            return []
        predictions = self._in_order(done)
        runner.call_hooks("after_predict_epoch")
        runner.call_hooks("after_predict", predictions=predictions)
        return predictions

    def _in_order(self, done: list[tuple[int, Predicted]]) -> list[Any]:
        if not self.collect:
            return []
        rows = [row for batch in self.runner.engine.collect(done) for row in batch.rows()]
        # Those of one place stay as they are: batch by batch, and process by process within.
        return [prediction for _, prediction in sorted(rows, key=lambda row: row[0])]
