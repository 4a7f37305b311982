"""Modules that several ranks compute together, against the same ones in one process."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from stratrun.strategies.splitting import divide
from stratrun.strategies.styles import parse_plan
from stratrun.testing import Ranks
from tests.parity.transformers import GATHERED_PLAN, SEQUENCE_PLAN, WHOLE_PLAN, texts, writer

PLANS = {"whole": WHOLE_PLAN, "sequence": SEQUENCE_PLAN, "gathered": GATHERED_PLAN}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def computed(model: nn.Module) -> dict[str, Tensor]:
    """Outputs and gradients of one step, the main process having drawn from the same stream."""
    torch.manual_seed(5)
    inputs, following = texts(3).tensors
    outputs = model(inputs)
    nn.functional.cross_entropy(outputs.flatten(0, 1), following.flatten()).backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {"outputs": outputs.detach(), "drawn": torch.rand(1), **gradients}


def divided(dropout: float) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    found: dict[str, Any] = {}
    for name, plan in PLANS.items():
        model = writer(dropout)
        divide(model, parse_plan(plan), mesh)
        found[name] = computed(model)
        found[f"{name} held"] = sum(
            p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters()
        )
    tied = writer(tied=True)
    divide(tied, parse_plan({"words": "row", "head": {"style": "column", "output": "whole"}}), mesh)
    found["tied"] = computed(tied) if tied.head.weight is tied.words.weight else {}
    return found


def test_outputs_gradients_and_dropout_are_those_of_one_process_whatever_the_plan(two_ranks: Ranks) -> None:
    truth, tied = computed(writer(0.25)), computed(writer(tied=True))
    for found in two_ranks(divided, 0.25):
        for name in PLANS:
            torch.testing.assert_close(found[name], truth, rtol=1e-5, atol=1e-7, msg=name)
        torch.testing.assert_close(found["tied"], tied, rtol=1e-5, atol=1e-7)
        held = sum(p.numel() for p in writer().parameters())
        assert found["whole held"] < 0.6 * held and found["gathered held"] < held
