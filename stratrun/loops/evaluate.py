from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stratrun.errors import ConfigError
from stratrun.loops.base import BaseLoop
from stratrun.registry import LOOPS

if TYPE_CHECKING:
    from stratrun.context import RunContext
    from stratrun.data import Feed
    from stratrun.evaluation import Evaluator


class EvaluationLoop(BaseLoop):
    """One pass over one or several data sets, and their metrics.

    Args:
        dataloader: One loader, or a mapping of names to loaders. Metrics of several are named
            ``<loader>/<metric>``.
        evaluator: Metrics for each of the data sets, or a mapping of the loaders' names to
            metrics.
    """

    def __init__(self, runner: RunContext, dataloader: Any, evaluator: Any) -> None:
        self.runner = runner
        several = names_loaders(dataloader)
        loaders = dataloader if several else {"": dataloader}
        self.dataloaders: dict[str, Feed] = {
            name: runner.build_dataloader(loader) for name, loader in loaders.items()
        }
        self.evaluators: dict[str, Evaluator | None] = {
            name: runner.build_evaluator(one)
            for name, one in evaluators_of(self.job, loaders, evaluator).items()
        }
        self.dataloader: Feed = next(iter(self.dataloaders.values()))
        self.evaluator: Any = next(iter(self.evaluators.values()))

    def run(self) -> dict[str, float]:
        runner, job = self.runner, self.job
        runner.call_hooks(f"before_{job}")
        runner.call_hooks(f"before_{job}_epoch")
        metrics: dict[str, float] = {}
        for name in self.dataloaders:
            prefix = f"{name}/" if name else ""
            results = self.run_one(name)
            if results is None:
                runner.call_hooks("on_break_off")
                return {}
            metrics.update({f"{prefix}{key}": value for key, value in results.items()})
        runner.metrics = metrics
        runner.call_hooks(f"after_{job}_epoch", metrics=metrics)
        runner.call_hooks(f"after_{job}", metrics=metrics)
        return metrics

    def run_one(self, name: str) -> dict[str, float] | None:
        """Evaluate one of the data sets; None if that was broken off, as the job is to end."""
        control = self.runner.control
        left = control.flagged or self.runner.state.urgent
        self.evaluator = self.evaluators[name]
        if not left:
            # Here for all batches, rather than in each step: entering it takes longer than many an operation.
            with torch.no_grad():
                left = self._run_batches(self.dataloaders[name])
        if control.meet(broke_off=left):
            self.evaluator.reset()
            return None
        results: dict[str, float] = self.evaluator.evaluate(folder=self._folder(name))
        return results

    def _folder(self, name: str) -> Path | None:
        """For figures and tables of one data set at this iteration; None where nothing is logged."""
        root = self.runner.log_folder
        if root is None:
            return None
        return Path(root, "evaluation", f"{self.job}-{self.runner.iter:08d}", name)

    def _run_batches(self, feed: Any) -> bool:
        """Returns whether the pass was left before its end."""
        runner, control = self.runner, self.runner.control
        before, after = f"before_{self.job}_iter", f"after_{self.job}_iter"
        poll = control.poll
        # As a rule nobody listens before each batch.
        heard = runner.hooks.listens(before)
        for idx, data_batch in enumerate(feed):
            if heard:
                runner.call_hooks(before, batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            runner.call_hooks(after, batch_idx=idx, data_batch=data_batch, outputs=outputs)
            if control.flagged or (poll is not None and poll()):
                return True
        return False


@LOOPS.register_module()
class ValLoop(EvaluationLoop):
    """Metrics on the validation data, during training or alone."""

    job = "val"


@LOOPS.register_module()
class TestLoop(EvaluationLoop):
    """Metrics on the test data."""

    __test__ = False  # not a test case, whatever a collector may think of its name
    job = "test"


def names_loaders(spec: Any) -> bool:
    """Whether this is a mapping of names to loaders, rather than the settings of one loader."""
    if not isinstance(spec, Mapping) or not spec or "dataset" in spec or "type" in spec:
        return False
    return all(isinstance(one, Mapping) or hasattr(one, "__iter__") for one in spec.values()) and not any(
        isinstance(one, str) for one in spec.values()
    )


def evaluators_of(job: str, loaders: Mapping[str, Any], evaluator: Any) -> dict[str, Any]:
    """The metrics for each of several data sets: one evaluator for all, or one for each by name.

    Raises:
        ConfigError: the names are not those of the loaders.
    """
    if isinstance(evaluator, Mapping) and set(evaluator) & set(loaders):
        if set(evaluator) != set(loaders):
            raise ConfigError(
                f"{job}_evaluator names {', '.join(map(repr, evaluator))} and {job}_dataloader "
                f"{', '.join(map(repr, loaders))}; give metrics for each, or one evaluator for all"
            )
        return dict(evaluator)
    return dict.fromkeys(loaders, evaluator)
