from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from stratrun.data.rows import Predicted
from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.predictions.formats import check_format
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import PredictionSink, RunContext


@HOOKS.register_module()
class PredictionWriterHook(Hook):
    """Write predictions to files while `predict` runs, however many they are.

    Each process writes files of its own, and in the end one index is written for all, so that what a job that
    was broken off has left is never taken for whole. `stratrun.read_predictions` reads them in the order of
    the samples. A later job replaces them once its own are whole. With ``predict_cfg=dict(collect=False)``
    nothing is kept in memory but one file's worth.

    Args:
        path: The folder: in the work dir, or an absolute path, or a URL of the same store as the work dir's.
        format: ``"jsonl"``; ``"safetensors"`` or ``"npz"`` for tensors, which keep their dtype and shape.
        shard_size: Predictions in a file, at most.
        shard_mib: Mebibytes of them that are held in memory, at most.
    """

    def __init__(
        self,
        path: str = "predictions",
        *,
        format: Literal["jsonl", "safetensors", "npz"] = "jsonl",
        shard_size: int = 10_000,
        shard_mib: float = 64,
    ) -> None:
        check_format(format)
        if not isinstance(path, str) or not path:
            raise ConfigError(f"path={path!r} is no folder; give a name, a path or a URL")
        if isinstance(shard_size, bool) or not isinstance(shard_size, int) or shard_size < 1:
            raise ConfigError(f"shard_size={shard_size!r} must be a whole number above 0")
        if isinstance(shard_mib, bool) or not isinstance(shard_mib, int | float) or not shard_mib > 0:
            raise ConfigError(f"shard_mib={shard_mib!r} must be a number above 0")
        self._path = path
        self._format = format
        self._rows = shard_size
        self._size = max(int(shard_mib * 2**20), 1)
        self._sink: PredictionSink | None = None

    def before_predict(self, runner: RunContext) -> None:
        self._sink = runner.write_predictions(
            self._path, format=self._format, rows=self._rows, size=self._size
        )

    def after_predict_iter(self, runner: RunContext, batch_idx: int, outputs: Any) -> None:
        assert self._sink is not None
        batch = Predicted.of(runner.engine.batch, batch_idx, outputs)
        self._sink.add(batch.rows(), by_sample=batch.positions is not None)

    def after_predict_epoch(self, runner: RunContext) -> None:
        assert self._sink is not None
        url, count = self._sink.commit()
        self._sink = None
        runner.loggers.say(f"  predictions: {count}, in {url}")

    def on_break_off(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.discard()

    def on_exception(self) -> None:
        self.on_break_off()
