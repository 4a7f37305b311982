"""What is said of plans that a model cannot be divided by."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from stratrun.errors import ConfigError, ModelError
from stratrun.strategies import TensorParallelStrategy
from stratrun.strategies.splitting import divide
from stratrun.strategies.styles import parse_plan
from stratrun.testing import Ranks
from tests.parity.transformers import writer

COLUMN = {"blocks.*.up": "column"}

MISWRITTEN: dict[str, tuple[dict[str, Any], str]] = {
    "no plan": ({"plan": {}, "size": 2}, "says of no module how it is split"),
    "no style": ({"plan": {"head": 3}, "size": 2}, "is no style; give one of 'column', 'row'"),
    "style": ({"plan": {"head": "colum"}, "size": 2}, "did you mean 'column'?"),
    "key": ({"plan": {"head": {"style": "row", "outputs": "whole"}}, "size": 2}, "did you mean 'output'?"),
    "layout": ({"plan": {"head": {"style": "row", "output": "hole"}}, "size": 2}, "did you mean 'whole'?"),
    "dim": ({"plan": {"head": {"style": "split", "dim": "one"}}, "size": 2}, "the number of a dimension"),
    "size": ({"plan": COLUMN, "size": 0}, "size=0 must be the number of ranks"),
    "shard": ({"plan": COLUMN, "size": 2, "shard": {"block": "Block"}}, "did you mean 'blocks'?"),
}


@pytest.mark.parametrize("case", MISWRITTEN)
def test_what_is_miswritten_is_refused_before_any_rank_starts(case: str) -> None:
    options, message = MISWRITTEN[case]
    with pytest.raises(ConfigError) as caught:
        TensorParallelStrategy(**options)
    assert message in str(caught.value)


class Called(nn.Module):
    """Calls a layer in a way that no plan foresees."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.down(input=self.up(x))


MISFIT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "name": (writer, {"block.*.up": "column"}, "block.*.up"),
    "two": (writer, {**COLUMN, "blocks.0.up": "row"}, "which say different things of it"),
    "kind": (writer, {"blocks.*.norm1": "column"}, "has no style 'column'; that is for Linear, Embedding"),
    "odd": (lambda: nn.Sequential(nn.Linear(4, 5)), {"0": "column"}, "5 columns, which 2 ranks cannot share"),
    "odd input": (lambda: nn.Sequential(nn.Linear(5, 4)), {"0": "row"}, "5 columns, which 2 ranks cannot"),
    "padding": (lambda: nn.Sequential(nn.Embedding(4, 4, padding_idx=0)), {"0": "row"}, "padding_idx"),
    "tied": (lambda: writer(tied=True), {"words": "row"}, "name both modules in the plan"),
    "tied otherwise": (lambda: writer(tied=True), {"words": "column", "head": "column"}, "different ways"),
}
MISCALLED: dict[str, tuple[Any, dict[str, Any], tuple[int, ...], str]] = {
    "whole": (Called, {"up": "row"}, (2, 4), "takes 2 of 4 columns on each rank, by its style 'row'"),
    "in parts": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        {"0": "column", "1": "column"},
        (2, 4),
        "in dict(style='column', input='columns')",
    ),
    "keyword": (Called, {"down": "column"}, (2, 4), "'down' is in the plan of strategy='tensor_parallel'"),
    "length": (lambda: nn.Sequential(nn.ReLU()), {"0": "split"}, (2, 3, 4), "a sequence of 3 over 2 ranks"),
}


def told() -> dict[str, str]:
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for case, (make, plan, message) in MISFIT.items():
        with pytest.raises(ConfigError) as caught:
            divide(make(), parse_plan(plan), mesh)
        found[case] = str(caught.value) if message not in str(caught.value) else ""
    for case, (make, plan, shape, message) in MISCALLED.items():
        model = make()
        divide(model, parse_plan(plan), mesh)
        with pytest.raises(ModelError) as called:
            model(torch.ones(shape))
        found[case] = str(called.value) if message not in str(called.value) else ""
    return found


def test_what_does_not_fit_the_model_is_told_with_what_does(two_ranks: Ranks) -> None:
    for found in two_ranks(told):
        assert {case: text for case, text in found.items() if text} == {}
