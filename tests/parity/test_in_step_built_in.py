"""Ranks with different numbers of evaluation batches, under the strategies that are built in."""

from typing import Any

from torch import Tensor, nn

from tests.feeds import Numbers
from tests.parity.waiting import Doubling, chained, run
from tests.ranks import Ranks


class Layered(Doubling):
    """Doubles by way of layers, so that there is something to gather."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer() for _ in range(2)))

    def val_step(self, batch: Tensor) -> dict[str, Tensor]:
        return super().val_step(self.layers(batch[:, None].float())[:, 0].round())

    def predict_step(self, batch: Tensor) -> Tensor:
        return self.val_step(batch)["double"]


class Layer(nn.Module):
    """Gives back what it is given, by way of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False)
        nn.init.ones_(self.up.weight)
        nn.init.constant_(self.down.weight, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


STRATEGIES: list[Any] = [
    "fsdp",
    {"type": "hsdp", "replicate": 2},
    {"type": "tensor_parallel", "size": 2, "plan": {"layers.*.up": "column", "layers.*.down": "row"}},
]


def built_in(work_dir: str) -> list[Any]:
    found = []
    for strategy in STRATEGIES:
        for samples in (1, 9):
            spec = {"dataset": Numbers(samples), "batch_size": 2}
            options = {"val_dataloader": spec, "predict_dataloader": spec, "strategy": strategy}
            runner = run(model=Layered(), work_dir=work_dir, **options)
            found.append((runner.val(), [float(one) for one in runner.predict()]))
            runner.close()
    return found


def test_what_is_built_in_counts_each_sample_once_on_ranks_without_any_too(
    four_ranks: Ranks, tmp_path: Any
) -> None:
    truth = [(chained(samples), [2.0 * n for n in range(samples)]) for samples in (1, 9)] * len(STRATEGIES)
    for found in four_ranks(built_in, str(tmp_path)):
        assert found == truth
