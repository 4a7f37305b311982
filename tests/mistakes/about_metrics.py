"""What is measured, and what it is given."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError, MetricError, UnknownNameError
from stratrun.evaluation import Metric
from tests.mistakes.mistake import mistake, runner, train


class Nothing(Metric):
    """A metric whose compute forgets to return."""

    def update(self, preds: Tensor, target: Tensor) -> None: ...

    def compute(self) -> Any: ...


class Named(nn.Module):
    """A model whose outputs have names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def val_step(self, batch: Any) -> dict[str, Tensor]:
        return {"probabilities": self.linear(batch[0])}


@mistake(UnknownNameError, "val_evaluator", "'Acuracy'", "did you mean 'Accuracy'?")
def the_metric_is_misspelt(folder: Path) -> None:
    train(folder, val_evaluator={"type": "Acuracy"})


@mistake(UnknownNameError, "val_evaluator", "'accuracy'", "did you mean 'Accuracy'?")
def the_metric_is_in_lower_case(folder: Path) -> None:
    train(folder, val_evaluator="accuracy")


@mistake(ConfigError, "val_evaluator: Accuracy", "'top_k'", "did you mean 'topk'?")
def an_argument_of_the_metric_is_misspelt(folder: Path) -> None:
    train(folder, val_evaluator={"type": "Accuracy", "top_k": 5})


@mistake(ConfigError, "val_evaluator", "Evaluator", "'pred'", "did you mean 'preds'?")
def an_argument_of_the_evaluator_is_misspelt(folder: Path) -> None:
    train(folder, val_evaluator={"metrics": [{"type": "Accuracy"}], "pred": "x"})


@mistake(ConfigError, "val_evaluator=[]", "at least one metric")
def the_list_of_metrics_is_empty(folder: Path) -> None:
    train(folder, val_evaluator=[])


@mistake(ConfigError, "val_evaluator", "function", "Metric")
def the_metric_is_a_function(folder: Path) -> None:
    train(folder, val_evaluator=lambda outputs, targets: 0.0)


@mistake(ConfigError, "val_evaluator", "Linear", "Metric")
def the_metric_is_a_class_of_another_kind(folder: Path) -> None:
    train(folder, val_evaluator={"type": nn.Linear, "in_features": 1, "out_features": 1})


@mistake(ConfigError, "Accuracy: topk=0", "at least 1", "val_cfg", shows="built")
def the_metric_counts_the_best_zero(folder: Path) -> None:
    train(folder, val_evaluator={"type": "Accuracy", "topk": 0})


@mistake(MetricError, "Accuracy", "'accuracy'", "prefix=", shows="running")
def two_metrics_have_one_name(folder: Path) -> None:
    train(folder, val_evaluator=[{"type": "Accuracy"}, {"type": "Accuracy"}])


@mistake(MetricError, "Accuracy", "preds='logit'", "known: loss, preds", shows="running")
def the_evaluator_looks_for_a_key_that_is_not_there(folder: Path) -> None:
    train(folder, val_evaluator={"type": "Accuracy", "preds": "logit"})


@mistake(MetricError, "Accuracy", "preds", "'probabilities'", "preds='key'", shows="running")
def the_outputs_have_names_of_their_own(folder: Path) -> None:
    runner(folder, model=Named()).val()


@mistake(MetricError, "Accuracy", "top", "3", shows="running")
def the_metric_counts_more_classes_than_there_are(folder: Path) -> None:
    train(folder, val_evaluator={"type": "Accuracy", "topk": 5})


@mistake(MetricError, "Nothing", "NoneType", "number", shows="running")
def the_metric_computes_nothing(folder: Path) -> None:
    train(folder, val_evaluator=Nothing())


@mistake(MetricError, "Accuracy", "targets", "(4, 4)", shows="running")
def the_targets_have_another_shape(folder: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def val_step(self, batch: Any) -> tuple[Tensor, Tensor]:
            return self.linear(batch[0]), torch.zeros(4, 4)

    runner(folder, model=Flat()).val()


@mistake(ConfigError, "save_best='acuracy'", "did you mean 'accuracy'?", shows="running")
def the_best_is_told_by_an_unknown_metric(folder: Path) -> None:
    train(folder, default_hooks={"checkpoint": {"save_best": {"acuracy": "greater"}}})


@mistake(ConfigError, "save_best='quality'", "write save_best={'quality': 'greater'} or 'less'")
def what_is_better_is_not_clear(folder: Path) -> None:
    train(folder, default_hooks={"checkpoint": {"save_best": "quality"}})


@mistake(ConfigError, "takes no argument 'rule'", "use save_best={'name': 'greater'} or 'less'")
def what_is_better_is_called_otherwise(folder: Path) -> None:
    train(folder, default_hooks={"checkpoint": {"save_best": "accuracy", "rule": "max"}})


@mistake(ConfigError, "save_best='accuracy'", "val_dataloader")
def the_best_is_kept_without_validation(folder: Path) -> None:
    train(
        folder,
        default_hooks={"checkpoint": {"save_best": "accuracy"}},
        val_dataloader=None,
        val_evaluator=None,
    )
