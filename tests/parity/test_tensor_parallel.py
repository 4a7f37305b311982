"""Training by tensor parallelism, on a mesh of two by two and on one of one by two, against plain loops."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from stratrun.testing import Ranks
from tests.parity.transformers import GATHERED_PLAN, SEQUENCE_PLAN, WHOLE_PLAN, texts, writer
from tests.problems import trained

PLANS: dict[str, Any] = {"whole": WHOLE_PLAN, "sequence": SEQUENCE_PLAN, "gathered": GATHERED_PLAN}
SAMPLES, BATCH, ACCUMULATE, LIMIT = 22, 6, 2, 0.05


def plain() -> dict[str, Tensor]:
    """One process that takes each global batch whole. Four updates an epoch: the last window is short."""
    model, (inputs, following) = writer(), texts(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    batches = [slice(start, start + BATCH) for start in range(0, SAMPLES, BATCH)]
    for _ in range(4):
        for window in (batches[:2], batches[2:]):
            for part in window:
                loss = cross_entropy(model(inputs[part]).flatten(0, 1), following[part].flatten())
                (loss / len(window)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def whole(model: nn.Module) -> dict[str, Tensor]:
    named = model.state_dict().items()
    return {n: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for n, v in named}


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor], what: str) -> None:
    """To a millionth of the largest weight of each tensor."""
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        far = float((found[name] - value).abs().max() / value.abs().max())
        assert far < 1e-6, f"{what}: {name} by {far:.1e}"


def by_plan(plan: str, work_dir: str, **options: Any) -> dict[str, Any]:
    shard = options.pop("shard", {})
    runner = trained(
        writer(),
        strategy={"type": "tensor_parallel", "plan": PLANS[plan], "size": 2, "shard": shard},
        train_dataloader={"dataset": texts(SAMPLES), "global_batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": 4, "accumulate": ACCUMULATE},
        optimizer={"type": "SGD", "lr": 0.5, "momentum": 0.9},
        clip_grad=LIMIT,
        work_dir=work_dir,
        **options,
    )
    counts = runner.state
    return {"weights": whole(runner.model), "counts": (counts.iter, counts.step, counts.samples)}


def every_plan(work_dir: str) -> dict[str, Any]:
    return {plan: by_plan(plan, work_dir) for plan in PLANS}


def test_eight_updates_on_two_by_two_ranks_are_those_of_one_process(four_ranks: Ranks, tmp_path: Any) -> None:
    truth = plain()
    for found in four_ranks(every_plan, str(tmp_path)):
        for plan, made in found.items():
            torch.testing.assert_close(
                made["weights"], truth, rtol=1e-5, atol=1e-6, msg=lambda text: f"{plan}: {text}"
            )
            assert made["counts"] == (16, 8, 4 * SAMPLES)
