"""Weights under sharded strategies against those of one process, and how much they exchange for them."""

from typing import Any

import pytest

from tests.parity.sharded import assert_near, each, net, plain
from tests.parity.sharded_cases import Counts, counted, job, jobs
from tests.ranks import Ranks

LEAN: dict[str, Any] = {"type": "fsdp", "accumulate": "unsharded", "reshard_after_forward": False}
CASES: list[Any] = [
    {"type": "fsdp", "blocks": False, "offload": True},
    {"type": "fsdp", "blocks": ["Block", "blocks.*.up"], "ignore": ["head", "blocks.*.norm"]},
    {"type": "fsdp", "accumulate": "unsharded", "ignore": ["blocks.1"], "blocks": "blocks.*"},
    {"type": "hsdp", "accumulate": "unsharded", "offload": True},
]
ON_FOUR: list[Any] = ["fsdp", "hsdp", {"type": "fsdp", "reshard_after_forward": 2}]


def test_two_ranks_reach_the_weights_of_a_plain_loop(two_ranks: Ranks, tmp_path: Any) -> None:
    truth = plain(net())
    for rank in two_ranks(each, CASES, str(tmp_path)):
        for found in rank:
            assert_near(found, truth)


def test_four_ranks_reach_the_weights_of_a_plain_loop(four_ranks: Ranks, tmp_path: Any) -> None:
    truth = plain(net())
    for rank in four_ranks(each, ON_FOUR, str(tmp_path)):
        for found in rank:
            assert_near(found, truth)


@pytest.mark.parametrize("name", ["weighted", "unsized", "turns", "measured", "opaque", "thawed"])
def test_training_of_every_kind_reaches_the_weights_of_one_process(
    name: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = job(name, "single", str(tmp_path))
    for rank in two_ranks(jobs, ["fsdp", LEAN], [name], str(tmp_path)):
        for found in rank[name]:
            assert_near(found, truth)


def test_a_model_without_blocks_learns_whatever_its_step_returns_the_loss_in(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = job("hidden", "single", str(tmp_path))
    for rank in two_ranks(jobs, [{"type": "fsdp", "blocks": False}], ["hidden"], str(tmp_path)):
        assert_near(rank["hidden"][0], truth)


def test_steps_that_only_keep_ranks_together_draw_no_random_numbers(two_ranks: Ranks, tmp_path: Any) -> None:
    for rank in two_ranks(jobs, ["ddp", "fsdp"], ["drawing"], str(tmp_path)):
        truth, found = rank["drawing"]
        assert_near(found, truth)


def test_statistics_of_batches_are_those_of_replicas(two_ranks: Ranks, tmp_path: Any) -> None:
    for rank in two_ranks(jobs, ["ddp", "fsdp", "hsdp"], ["normed"], str(tmp_path)):
        truth, *others = rank["normed"]
        for found in others:
            assert_near(found, truth)


@pytest.mark.parametrize("precision", ["bf16-mixed", {"type": "16-mixed", "init_scale": 2.0**22}], ids=str)
def test_lower_precision_on_cpu_is_that_of_replicas(precision: Any, two_ranks: Ranks, tmp_path: Any) -> None:
    strategies = ["ddp", {"type": "fsdp", "blocks": False}, {**LEAN, "ignore": ["head"]}]
    options = {"precision": precision, "optimizer": {"type": "SGD", "lr": 0.3, "momentum": 0.9}}
    for rank in two_ranks(jobs, strategies, ["thawed"], str(tmp_path), **options):
        truth, at_once, in_blocks = rank["thawed"]
        assert_near(at_once, truth, 1e-6)
        assert_near(in_blocks, truth, 1e-6)
    for rank in two_ranks(jobs, ["ddp", "fsdp"], ["embedded"], str(tmp_path), **options):
        truth, in_blocks = rank["embedded"]
        assert_near(in_blocks, truth, 1e-6)


# Of three blocks and what is around them, with two micro-batches to a window.
COUNTS: list[tuple[Any, Counts]] = [
    ("fsdp", {"gathered": [7, 7], "averaged": [4, 4]}),
    ({"type": "fsdp", "reshard_after_forward": False}, {"gathered": [4, 4], "averaged": [4, 4]}),
    ({"type": "fsdp", "accumulate": "unsharded"}, {"gathered": [7, 7], "averaged": [0, 4]}),
    ({"type": "fsdp", "blocks": False}, {"gathered": [1, 1], "averaged": [1, 1]}),
]


def test_a_pass_gathers_and_averages_each_block_as_often_as_is_written(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    for rank in two_ranks(counted, [strategy for strategy, _ in COUNTS], str(tmp_path)):
        for found, (strategy, expected) in zip(rank, COUNTS, strict=True):
            assert found == expected, strategy


def test_replicas_add_one_round_for_each_block(four_ranks: Ranks, tmp_path: Any) -> None:
    for rank in four_ranks(counted, ["hsdp"], str(tmp_path), kinds={"allreduce_": "over replicas"}):
        # Three blocks and the root; and the one parameter that is a single number, by itself. Before an
        # update one more, of all ranks: whether their parts of the gradients are finite.
        assert rank == [{"over replicas": [5, 6]}]
