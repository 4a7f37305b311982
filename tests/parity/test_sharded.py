"""Weights under sharded strategies against those of a plain loop in one process."""

from typing import Any

from tests.parity.sharded import assert_near, each, net, plain
from tests.ranks import Ranks

CASES: list[Any] = [
    "fsdp",
    {"type": "fsdp", "accumulate": "unsharded"},
    {"type": "fsdp", "reshard_after_forward": False},
    {"type": "fsdp", "blocks": False, "offload": True},
    {"type": "fsdp", "blocks": ["Block", "blocks.*.up"], "ignore": ["head", "blocks.*.norm"]},
    {"type": "fsdp", "accumulate": "unsharded", "ignore": ["blocks.1"], "blocks": "blocks.*"},
    "hsdp",
    {"type": "hsdp", "accumulate": "unsharded", "offload": True},
]


def test_two_ranks_reach_the_weights_of_a_plain_loop(two_ranks: Ranks, tmp_path: Any) -> None:
    truth = plain(net())
    for rank in two_ranks(each, CASES, str(tmp_path)):
        for found in rank:
            assert_near(found, truth)
