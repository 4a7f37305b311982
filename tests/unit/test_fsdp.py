"""Placing models under sharded strategies: what is spread, what is not, and what is refused."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError
from stratrun.strategies.fsdp import FSDPStrategy
from stratrun.strategies.hsdp import HSDPStrategy
from stratrun.strategies.mesh import natural_replicas
from tests.parity.sharded import Net, net, whole, with_runner
from tests.ranks import Ranks

CPU = torch.device("cpu")


def placed(model: nn.Module, **options: Any) -> FSDPStrategy:
    strategy = FSDPStrategy(**options)
    strategy.place(model, CPU, compute_dtype=torch.float32)
    return strategy


def filled(offload: bool) -> tuple[dict[str, Tensor], set[str]]:
    """A model that was built without memory, the values that it was given, and where they lie."""
    source = net(seed=5)
    source.register_buffer("steps", torch.arange(3))
    with torch.device("meta"):
        model = Net()
        model.register_buffer("steps", torch.arange(3), persistent=False)
    values = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    strategy = FSDPStrategy(offload=offload)
    strategy.place(model, CPU, compute_dtype=torch.float32, initial=lambda name: values[name].detach())
    strategy.wrap(model, CPU, partial_backward=False)
    model(torch.full((2, 5), float(torch.distributed.get_rank()))).sum().backward()
    assert model.scale.grad is not None
    gradients = [torch.empty(()) for _ in range(2)]
    torch.distributed.all_gather(gradients, model.scale.grad)
    assert gradients[0] == gradients[1] != 0
    tensors = [*model.parameters(), *model.buffers()]
    return {**whole(model), "steps": model.steps}, {t.device.type for t in tensors}  # type: ignore[dict-item]


@pytest.mark.parametrize("offload", [False, True])
def test_a_model_without_memory_gets_the_values_that_it_would_have_had(
    offload: bool, two_ranks: Ranks
) -> None:
    truth = {**whole(net(seed=5)), "steps": torch.arange(3)}
    for values, devices in two_ranks(filled, offload):
        torch.testing.assert_close(values, truth, rtol=0, atol=0)
        assert devices == {"cpu"}


def differing() -> tuple[dict[str, Tensor], dict[str, int]]:
    """A model with values of its own on each rank, and a tensor in a format for images."""
    rank = torch.distributed.get_rank()
    model = net(seed=rank)
    model.image = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.constant_(model.image.weight, float(rank))
    model.register_buffer("seen", torch.tensor([rank == 0, False]))
    model.register_buffer("phase", torch.full((2,), complex(rank, 1.0)))
    placed(model, ignore=["stem"])
    sizes = {name: getattr(p, "to_local", lambda p=p: p)().numel() for name, p in model.named_parameters()}
    return whole(model), sizes


def test_all_ranks_get_the_values_of_the_main_rank_and_hold_parts_of_them(two_ranks: Ranks) -> None:
    truth = net(seed=0).state_dict()
    for values, sizes in two_ranks(differing):
        torch.testing.assert_close({name: values[name] for name in truth}, truth, rtol=0, atol=0)
        assert not values["image.weight"].any()
        assert values["seen"].tolist() == [True, False]
        assert values["phase"].tolist() == [1j, 1j]
        assert sizes["head.weight"] == 12 or sizes["head.weight"] == 6
        assert (sizes["stem.weight"], sizes["scale"]) == (30, 1)


def refused(options: dict[str, Any], kind: str) -> str:
    model = net()
    if kind == "mixed":
        model.blocks[0].up.double()  # type: ignore[index,union-attr]
    if kind == "lazy":
        model.more = nn.LazyLinear(2)
    with pytest.raises(ConfigError) as caught:
        placed(model, **options)
    return str(caught.value)


REFUSED = [
    ({"blocks": "Blok"}, "", "blocks='Blok' is no part of Net; did you mean 'Block'"),
    ({"ignore": ["blocks.*.nrm"]}, "", "ignore='blocks.*.nrm' names no parameter"),
    ({"reshard_after_forward": 3}, "", "reshard_after_forward=3 must divide the 2 ranks"),
    ({}, "mixed", "ignore=['blocks.0.up.weight', 'blocks.0.up.bias']"),
    ({}, "lazy", "more.weight, more.bias get theirs in the first forward pass"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_sharded_is_refused_with_what_to_do(two_ranks: Ranks) -> None:
    for options, kind, told in REFUSED:
        for message in two_ranks(refused, options, kind):
            assert told in message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"accumulate": "shard"}, "accumulate='shard' is unknown; did you mean 'sharded'"),
        ({"reshard_after_forward": 1}, "reshard_after_forward=1 must be True, False, or the number of ranks"),
        ({"reduce_dtype": "float64"}, "reduce_dtype='float64' is unknown"),
        ({"ignore": "head"}, "ignore='head' must be a list of names"),
        ({"offload": "cpu"}, "offload='cpu' must be True or False"),
        ({"blocks": 3}, "blocks=3 says of no blocks which"),
    ],
)
def test_an_option_that_fits_no_model_is_refused_at_once(options: dict[str, Any], told: str) -> None:
    for strategy in (FSDPStrategy, HSDPStrategy):
        with pytest.raises(ConfigError, match=re.escape(told)):
            strategy(**options)


def test_an_unknown_option_of_replicas_names_the_near_miss() -> None:
    with pytest.raises(ConfigError, match="takes no argument 'offlaod'; did you mean 'offload'"):
        HSDPStrategy(offlaod=True)
    with pytest.raises(ConfigError, match="replicate=0 must be a whole number, from 1 on"):
        HSDPStrategy(replicate=0)


@pytest.mark.parametrize(
    ("world", "local", "replicas"), [("8", "4", 2), ("8", "2", 4), ("8", "8", 2), ("1", "1", 1), ("4", "", 2)]
)
def test_there_is_a_replica_for_each_machine_or_two_on_one(world: str, local: str, replicas: int) -> None:
    environ = {"WORLD_SIZE": world, **({"LOCAL_WORLD_SIZE": local} if local else {})}
    assert natural_replicas(environ) == replicas


def taken_again(folder: str) -> list[str]:
    """A model that one run has trained, given to another, under each of two strategies."""
    model = net()
    with_runner("fsdp", folder, model=model)
    told = []
    for strategy in ("ddp", "fsdp"):
        with pytest.raises(ConfigError) as error:
            with_runner(strategy, folder, model=model)
        told.append(str(error.value))
    return told


def test_a_model_that_an_earlier_run_has_spread_is_refused_by_name(two_ranks: Ranks, tmp_path: Any) -> None:
    for told in two_ranks(taken_again, str(tmp_path)):
        assert all("this Net was spread over ranks by an earlier run; build a new" in text for text in told)
