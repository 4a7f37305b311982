"""Which parts of a model are its blocks, as the user says it and by default."""

from typing import Any

import pytest
from torch import Tensor, nn

from stratrun.blocks import check_spec, select
from stratrun.errors import ConfigError


class Mlp(nn.Sequential):
    """Layers that are no blocks by themselves."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Block(nn.Module):
    """What repeats in a network of one width."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Wide(Block):
    """A block of another class, which is still one by its base."""


class Net(nn.Module):
    """An embedding, blocks in a list, and a head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Stages(nn.Module):
    """Stages of different widths, in which blocks repeat, but for the last, which has one."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(count))) for width, count in ((2, 2), (4, 3), (8, 1))
        )


def names(module: nn.Module, spec: Any) -> list[str]:
    return [name for name, _ in select(module, spec, "blocks")]


BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("spec", [None, "auto", "Block", Block, "blocks.*", [Block], "blocks.[0-2]"])
def test_the_blocks_of_a_list_are_found(spec: Any) -> None:
    assert names(Net(), spec) == BLOCKS


def test_a_name_stands_for_a_class_its_subclasses_or_a_part() -> None:
    net = Net()
    net.blocks.append(Wide())
    assert names(net, Block) == names(net, "Block") == [*BLOCKS, "blocks.3"]
    assert names(net, f"{Wide.__module__}.Wide") == ["blocks.3"]
    assert names(net, "head") == ["head"]
    assert names(net, ["head", "Wide", "blocks.0"]) == ["blocks.0", "blocks.3", "head"]


def test_a_star_stands_for_one_step_and_two_for_any_number() -> None:
    net = Net()
    assert names(net, "*") == ["embed", "head"]  # and not the list, which is never called
    assert names(net, "blocks.*.mlp") == [f"{block}.mlp" for block in BLOCKS]
    assert names(net, "**.mlp") == [f"{block}.mlp" for block in BLOCKS]
    assert names(net, "blocks.1.**") == [
        "blocks.1",
        *(f"blocks.1.{p}" for p, _ in Block().named_modules() if p),
    ]


def test_what_repeats_at_several_depths_is_taken_where_it_is_alike() -> None:
    found = ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "stages.1.2", "stages.2.0"]
    assert names(Stages(), "auto") == found


def test_the_outermost_of_what_repeats_is_taken() -> None:
    net = nn.Sequential(nn.ModuleDict({"x": nn.ModuleList([Net(), Net()])}), Block())
    assert names(net, "auto") == ["0.x.0", "0.x.1"]
    wrapped = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    )
    assert names(wrapped, "auto") == ["0", "1"]


def test_plain_layers_and_what_stands_alone_are_no_blocks_by_themselves() -> None:
    assert names(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "auto") == []
    assert names(Net(blocks=1), "auto") == []
    assert names(Net(), False) == []


def test_a_module_in_two_places_is_one_block() -> None:
    net = Net()
    net.blocks.append(net.blocks[0])
    assert names(net, "auto") == names(net, "Block") == BLOCKS


def test_lazy_layers_do_not_keep_blocks_from_being_found() -> None:
    net = nn.ModuleList(nn.Sequential(nn.LazyLinear(2), nn.ReLU()) for _ in range(2))
    assert names(net, "auto") == ["0", "1"]


def test_by_size_a_part_counts_without_the_blocks_in_it() -> None:
    # A linear layer of a block has 20 parameters, a block 48, the embedding 12 and the head 10.
    assert names(Net(), {"min_params": 48}) == BLOCKS
    assert names(Net(), {"min_params": 40}) == [f"{block}.mlp" for block in BLOCKS]
    assert names(Net(), {"min_params": 11})[:3] == ["embed", "blocks.0.mlp.0", "blocks.0.mlp.2"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("Blok", "blocks='Blok' is no part of Net; did you mean 'Block'?"),
        ("bloks.*", r"did you mean 'blocks.\*'?"),
        (nn.Conv2d, r"Conv2d is no part of Net; it is made of Linear \(8\), Block \(3\), LayerNorm \(3\)"),
        ("xyz", "it is made of Linear"),
        ("blocks", r"blocks='blocks' is a list of modules, which is never called itself; write 'blocks.\*'"),
        (
            {"min_params": 1000},
            r"no part of Net has so many; the largest are blocks \(144\), blocks.0 \(48\)",
        ),
        (["Block", "nothing"], "blocks='nothing' is no part"),
    ],
)
def test_naming_what_is_not_there_says_what_is(spec: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        select(Net(), spec, "blocks")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (3, "blocks=3 says of no blocks which; give 'auto', a class"),
        (True, "blocks=True says"),
        ([], r"blocks=\[\] is an empty list; write False"),
        ([Block, 3], "blocks=3 says"),
        (int, "blocks=int says"),
        ("", "blocks='' says"),
        ({"min_parms": 3}, "'min_parms' is not known; did you mean 'min_params'"),
        ({"min_params": 0}, "min_params=0 must be a whole number"),
        ({}, "min_params=None must be"),
    ],
)
def test_what_could_be_no_choice_is_refused_whatever_the_model(spec: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_spec(spec, "blocks")
