"""A sum that is under way while the ranks go on."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stratrun.distributed import Collectives, ProcessEnv
from tests.ranks import Ranks


def profiled() -> tuple[list[str], Tensor]:
    """What a profiler hears of a sum that it does not wait for, and the sum."""
    ranks = Collectives(ProcessEnv.from_environ(), dist.group.WORLD)
    tensor = torch.full((3,), float(1 + ranks.rank), dtype=torch.float64)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        end = ranks.begin_sum(tensor)
        torch.ones(2) @ torch.ones(2)
    end()
    return [event.key for event in found.key_averages()], tensor


def test_a_profiler_hears_of_no_sum_that_may_end_after_it_and_of_all_that_follows(two_ranks: Ranks) -> None:
    # Torch notes the end of such work in memory that the profiler has freed by then.
    for heard, total in two_ranks(profiled):
        assert not any("reduce" in name for name in heard)
        assert "aten::dot" in heard
        assert total.tolist() == [3.0] * 3
