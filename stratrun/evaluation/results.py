"""Results of single samples: written by an evaluation, and evaluated later without the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratrun.data.batch import batch_size_of
from stratrun.data.json_lines import json_line, value_of
from stratrun.data.rows import take_apart, to_host
from stratrun.errors import ConfigError, DataError, MetricError, nearest
from stratrun.evaluation.base_metric import BaseMetric
from stratrun.evaluation.evaluator import build_evaluator
from stratrun.evaluation.inputs import TARGET, outline, target_of
from stratrun.registry import METRICS


@METRICS.register_module()
class DumpResults(BaseMetric):
    """Writes what the model gave for each sample, and the target, a line of JSON for each, in order.

    The lines are in ``dump_results.jsonl`` in the folder of the evaluation: keys are those of what the model
    returned, `preds` where that is a tensor, and `target`. `evaluate_results` measures them later.

    Args:
        keys: Which of them, where a model returns more than is worth keeping.
    """

    def __init__(self, keys: Iterable[str] | None = None, *, prefix: str | None = None) -> None:
        super().__init__(prefix)
        if isinstance(keys, str):
            raise ConfigError(f"DumpResults: keys={keys!r} must be a list of names; write keys=[{keys!r}]")
        self.keys: set[str] | None = None if keys is None else set(keys)
        self._kept: list[Any] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        size = batch_size_of(data_batch)
        outputs = to_host(data_samples)
        rows = None if size is None else take_apart(outputs, size)
        if rows is None or size is None:
            raise MetricError(
                f"DumpResults: {outline(data_samples)} has no row for each sample of {outline(data_batch)}; "
                "have the model's val_step return some"
            )
        rows = [dict(row) if isinstance(row, Mapping) else {"preds": row} for row in rows]
        target = target_of(outputs, to_host(data_batch))
        targets = None if target is None else take_apart(target, size)
        for i, row in enumerate(rows):
            if targets is not None and not row.keys() & set(TARGET):
                row["target"] = targets[i]
            self.results.append(row if self.keys is None else self._chosen(row))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self._kept = results
        return {}

    def write_files(self, folder: Path, stem: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{stem}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json_line(row)}\n" for row in self._kept)
        self._kept = []

    def _chosen(self, row: dict[str, Any]) -> dict[str, Any]:
        assert self.keys is not None
        missing = self.keys - row.keys()
        if missing:
            raise MetricError(
                f"DumpResults: keys={sorted(missing)!r} are not there; a sample has {sorted(row)}"
            )
        return {key: row[key] for key in row if key in self.keys}


def evaluate_results(results: Any, evaluator: Any, *, batch_size: int = 256) -> dict[str, float]:
    """Metrics of results that were kept, as an evaluation in one process gives them.

    Args:
        results: A file that `DumpResults` has written, or results of single samples one by one: mappings
            with predictions and targets under the names that metrics look for (see docs/metrics.md).
        evaluator: As `val_evaluator` of a Runner.
        batch_size: How many samples metrics get at a time.

    Raises:
        ConfigError: a result is no mapping, or has other keys than the first.
        DataError: there is no such file, or a line of it is no result.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r} must be a whole number, 1 or more")
    if not isinstance(results, str | Path | Iterable):
        raise ConfigError(f"results={results!r} is no file, and gives no results one by one")
    measured = build_evaluator(evaluator)
    rows = iter(_read(results) if isinstance(results, str | Path) else results)
    first: Mapping[str, Any] | None = None
    while batch := list(islice(rows, batch_size)):
        for row in batch:
            first = row if first is None else first
            if not isinstance(row, Mapping) or row.keys() != first.keys():
                expected = sorted(first) if isinstance(first, Mapping) else "a mapping"
                raise ConfigError(
                    f"results: {outline(row)} is no result of a sample like the first, {expected}"
                )
        outputs = {key: _column([row[key] for row in batch]) for key in batch[0]}
        measured.process(outputs, outputs)
    return measured.evaluate()


def _read(path: str | Path) -> Iterable[Any]:
    path = Path(path)
    if not path.is_file():
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        why = "is a folder, and no file" if path.is_dir() else f"does not exist; {nearest(path.name, beside)}"
        raise DataError(f"results: {path} {why}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield value_of(line.decode())
            except ValueError as error:
                raise DataError(
                    f"results: {path}:{number} is no line of JSON, as where writing was broken off: {error}"
                ) from error


def _column(values: list[Any]) -> Any:
    """One value for each sample as a batch has them: a tensor where they are of one shape."""
    if all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values):
        return torch.stack(values)
    if all(isinstance(value, bool | int | float) for value in values):
        return torch.tensor(values)
    return values
