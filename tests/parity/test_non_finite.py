"""What follows from a loss that is no number, on one rank of several too, is what a plain loop would do."""

from typing import Any

import pytest
import torch

from tests.parity import non_finite as runs
from tests.ranks import Ranks

KINDS = [*runs.OPTIONS, "running statistics", "two optimizers", "in turns"]
# Of the scaled run the forward pass is in float16, and a mean of two such is not that of all samples.
CLOSE = {"scaled": {"rtol": 2e-2, "atol": 2e-3}}


def on(strategy: str, ranks: Ranks, function: Any, *arguments: Any) -> list[Any]:
    if strategy == "single":
        return [function(strategy, *arguments)]
    return list(ranks(function, strategy, *arguments))


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_run_ends_with_the_parameters_from_before_the_update_on_every_rank(
    strategy: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    found = on(strategy, two_ranks, runs.raised, str(tmp_path))
    assert all(one == found[0] for one in found)
    who = "" if strategy == "single" else " on rank 1"
    positions = "12, 13, 14, 15" if strategy == "single" else "13, 15"
    for name, (same, iteration, text) in found[0].items():
        assert (name, same, iteration) == (name, True, 3)
        assert f"loss nan{who}" in text
        assert f"samples {positions} of the data set" in text


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_skipped_update_is_one_of_a_batch_that_was_never_there(
    strategy: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    # Statistics over the samples of each rank are not those of a plain loop.
    kinds = [kind for kind in KINDS if strategy == "single" or kind != "running statistics"]
    for found in on(strategy, two_ranks, runs.skipped, str(tmp_path), kinds):
        for name, (weights, counts) in found.items():
            truth, expected = (
                runs.plain_heads(name) if name in ("two optimizers", "in turns") else runs.plain(name)
            )
            exact = {"rtol": 0.0, "atol": 0.0} if strategy == "single" else {"rtol": 1e-5, "atol": 1e-6}
            if strategy != "single":
                exact = CLOSE.get(name, exact)
            torch.testing.assert_close(weights, truth, **exact, msg=lambda text, name=name: f"{name}: {text}")
            assert (name, counts) == (name, expected)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_run_goes_back_to_what_it_has_kept_and_on_with_the_data_and_so_it_does_when_resumed(
    strategy: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    for to in ("memory", "checkpoint", "skip"):
        for whole, resumed in on(strategy, two_ranks, runs.rolled_back, str(tmp_path), to, 8):
            # The second of two bad batches comes after that checkpoint.
            torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
            if to == "skip":
                continue
            truth = runs.plain_rollback(to)
            assert whole[3] == truth[3]
            torch.testing.assert_close(whole[:3], truth[:3], rtol=1e-5, atol=1e-6)
