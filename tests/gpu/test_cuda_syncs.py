"""What waits for a GPU is counted, and a run waits for it at log points only. Not run where there is none."""

import warnings
from collections import Counter

import pytest
import torch

from stratrun import Hook
from stratrun.testing import count_syncs
from tests.parity.test_zero_sync import INTERVAL, between_log_points, run
from tests.problems import perceptron

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_copies_that_block_are_counted_and_those_that_do_not_are_not():
    values = torch.arange(4.0, device="cuda")
    pinned = torch.empty(4, pin_memory=True)
    with count_syncs() as found:
        pinned.copy_(values, non_blocking=True)
        values.copy_(pinned, non_blocking=True)
        values.to("cpu", non_blocking=True)
        values.sum() / 2
    assert len(found) == 0, found
    with count_syncs() as found:
        values.cpu()
        values.to("cpu")
        values.tolist()
        torch.empty(4).copy_(values, non_blocking=True)  # not pinned: it waits all the same
        torch.tensor([1.0, 2.0], device="cuda")
    assert found.kinds == {"copy": 5}, found
    with count_syncs() as found:
        values.sum().item()
        torch.cuda.synchronize()
        torch.cuda.Event().synchronize()
    assert found.kinds == {"item": 1, "synchronize": 2}, found


class Told(Hook):
    """Has torch itself tell of waits, but where values are logged."""

    priority = 0

    def before_train_iter(self):
        torch.cuda.set_sync_debug_mode("warn")

    def after_train_iter(self, runner):
        if runner.iter % INTERVAL == 0:
            torch.cuda.set_sync_debug_mode("default")

    def after_train_epoch(self):
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_on_a_gpu_waits_at_log_points_only(tmp_path):
    for clip in (0.1, None):
        marks, told = run(
            "single", perceptron, str(tmp_path / f"counted-{clip}"), clip_grad=clip, accelerator="cuda"
        )
        assert [one for one in between_log_points(marks) if one[2]] == [], told
        assert marks[-1].waits > marks[0].waits


def test_torch_itself_sees_no_wait_between_log_points(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("single", perceptron, str(tmp_path), accelerator="cuda", more_hooks=[Told()])
    waits = Counter(str(one.message) for one in caught if "synchronizing CUDA" in str(one.message))
    assert waits == {}
