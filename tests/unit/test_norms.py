"""The norm of gradients that are spread over ranks, against torch's own of the whole ones in one process."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from stratrun.strategies import norms
from stratrun.testing import Ranks

TYPES = (2.0, 1.0, 3.5, 0.5, math.inf)
# Rows that do not divide by 4, or are too few for each rank to have one; a number alone.
SHAPES = {"even": (8, 6), "uneven": (7, 4), "few": (3, 5), "vector": (5,), "scalar": ()}
BOTH = (Shard(0), Shard(1))
OVER: dict[str, tuple[Placement, ...] | None] = {
    "rows": (Shard(0), Replicate()),
    "columns": (Replicate(), Shard(1)),
    "both": BOTH,
    "everywhere": (Replicate(), Replicate()),
    "plain": None,
}


def gradients(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def spread(
    whole: dict[str, Tensor], mesh: DeviceMesh, placements: tuple[Placement, ...] | None
) -> dict[str, nn.Parameter]:
    """Parameters with these gradients. What has fewer dimensions is sharded over fewer."""
    made = {}
    for name, gradient in whole.items():
        if placements is None:
            made[name] = nn.Parameter(torch.zeros_like(gradient))
            made[name].grad = gradient.clone()
            continue
        own = [Replicate() if p.is_shard() and p.dim >= gradient.dim() else p for p in placements]  # type: ignore[attr-defined]
        made[name] = nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, own))
        made[name].grad = distribute_tensor(gradient.clone(), mesh, own)
    return made


def clipped(parameters: list[nn.Parameter], max_norm: float, norm_type: float) -> dict[str, Any]:
    norm = norms.clip(parameters, max_norm, norm_type)
    grads = [p.grad for p in parameters if p.grad is not None]
    return {
        "norm": norm,
        "grads": [g.full_tensor() if isinstance(g, DTensor) else g for g in grads],
        "waits": isinstance(norm, DTensor),
    }


def every_way() -> dict[Any, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    found: dict[Any, Any] = {}
    for norm_type in TYPES:
        for way, placements in OVER.items():
            found[way, norm_type] = clipped([*spread(gradients(), mesh, placements).values()], 0.5, norm_type)
        # Each in another way, one of them on a mesh of one dimension, one on that of all ranks.
        whole = gradients()
        mixed = [spread({n: whole[n]}, mesh, p)[n] for n, p in zip(whole, OVER.values(), strict=True)]
        mixed[0] = spread({"even": whole["even"]}, mesh["data"], (Shard(0),))["even"]
        mixed[1] = spread({"uneven": whole["uneven"]}, init_device_mesh("cpu", (4,)), (Shard(0),))["uneven"]
        found["mixed", norm_type] = clipped(mixed, 0.5, norm_type)
    return found


def test_however_gradients_are_spread_norm_and_clipped_gradients_are_those_of_one_process(
    four_ranks: Ranks,
) -> None:
    ranks = four_ranks(every_way)
    for (way, norm_type), found in ranks[0].items():
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients().values()]
        for parameter, gradient in zip(parameters, gradients().values(), strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, 0.5, norm_type)
        torch.testing.assert_close(found["norm"], norm, rtol=1e-6, atol=0, msg=f"{way} {norm_type}")
        truth = [p.grad for p in parameters]
        torch.testing.assert_close(found["grads"], truth, rtol=2e-6, atol=1e-8, msg=f"{way} {norm_type}")
        for other in ranks:
            assert torch.equal(other[way, norm_type]["norm"], found["norm"])
            assert not other[way, norm_type]["waits"]


def odd_cases() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for bad in (math.inf, math.nan):
        for norm_type in (2.0, math.inf):
            parameters = spread(gradients(), mesh, BOTH)
            grad = parameters["even"].grad
            assert isinstance(grad, DTensor)
            if rank == 3:
                grad.to_local()[0, 0] = bad
            norm = norms.clip([*parameters.values()], 0.5, norm_type)
            found[f"{bad} {norm_type}"] = float(norm)
    parameters = spread(gradients(), mesh, BOTH)
    parameters["even"].grad = None
    if rank:
        parameters["uneven"].grad = None
    found["lacking"] = float(norms.clip([*parameters.values()], 0.5))
    weight = nn.Parameter(distribute_tensor(torch.zeros(3), mesh, [Replicate(), Replicate()]))
    part = torch.full((3,), float(rank % 2))
    weight.grad = DTensor.from_local(part, mesh, [Replicate(), Partial()], run_check=False)
    found["partial"] = float(norms.clip([weight], 100.0))
    found["settled"] = weight.grad.placements == weight.placements
    for dtype in (torch.float64, torch.bfloat16):
        found[str(dtype)] = norms.clip([*spread(gradients(dtype), mesh, BOTH).values()], 0.5)
    found["none"] = float(norms.clip([], 1.0)), float(norms.clip([nn.Parameter(torch.zeros(1))], 1.0))
    return found


def test_a_value_that_is_not_finite_on_one_rank_is_known_to_all(four_ranks: Ranks) -> None:
    for found in four_ranks(odd_cases):
        assert found["inf 2.0"] == found["inf inf"] == math.inf
        assert math.isnan(found["nan 2.0"]) and math.isnan(found["nan inf"])
        rest = [gradients()[name] for name in ("few", "vector", "scalar")]
        # A gradient that only one rank has counts as far as it is there, and no rank waits for another.
        assert found["lacking"] >= float(nn.utils.get_total_norm(rest)) - 1e-5
        assert found["partial"] == pytest.approx(math.sqrt(3.0))
        assert found["settled"]
        exact = nn.utils.get_total_norm(gradients(torch.float64).values())
        torch.testing.assert_close(found["torch.float64"], exact, rtol=1e-13, atol=0)
        # Added up in 32 bits, whatever torch does alone.
        coarse = nn.utils.get_total_norm([g.float() for g in gradients(torch.bfloat16).values()])
        torch.testing.assert_close(found["torch.bfloat16"], coarse, rtol=1e-6, atol=0)
        assert found["none"] == (0.0, 0.0)


def counted() -> list[int]:
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    whole, made = gradients(), []
    for placements in OVER.values():
        made += [*spread(whole, mesh, placements).values()]
    counts = []
    for parameters in (made, spread(whole, mesh, None).values()):
        with CommDebugMode() as mode:
            norms.clip([*parameters], 0.5)
        counts.append(sum(mode.get_comm_counts().values()))
    return counts


def test_there_is_one_exchange_for_each_mesh_dimension_however_many_parameters_there_are(
    four_ranks: Ranks,
) -> None:
    assert four_ranks(counted) == [[2, 0]] * 4
