"""What is planned is what a real run then holds and exchanges, counted on real ranks by the same meter."""

from pathlib import Path
from typing import Any

import pytest

from stratrun.testing import Ranks
from tests.plans import config, measured, planned


def compare(plan: dict[str, Any], real: dict[str, Any]) -> None:
    told = [tuple(one.values()) for one in plan["exchanges"]["of_an_update"]]
    assert sorted(told) == real["exchanges"]
    assert plan["peak"]["total"] == pytest.approx(real["peak"], rel=0.02)
    assert plan["peak"]["phase"] == real["phase"]
    for kind in ("weights", "gradients", "optimizer"):
        assert plan["memory"][kind] == real["most"][kind], kind


def test_memory_and_exchanges_of_ddp_on_two_ranks_are_as_planned(
    two_ranks: Ranks, tmp_path: Path, capsys: Any
) -> None:
    changed: dict[str, Any] = {"strategy": "ddp", "work_dir": str(tmp_path / "run")}
    plan = planned(tmp_path, capsys, "--world-size", "2", **changed)
    compare(plan, two_ranks(measured, config(**changed))[0])
    window = {"train_cfg": {"by_epoch": False, "max_iters": 15, "accumulate": 5}}
    plan = planned(tmp_path, capsys, "--world-size", "2", **changed, **window)
    compare(plan, two_ranks(measured, config(**changed, **window), 5)[0])


WINDOW = {"train_cfg": {"by_epoch": False, "max_iters": 6, "accumulate": 2}}


@pytest.mark.parametrize(
    ("strategy", "more", "mesh"),
    [
        ({"type": "ddp", "shard_optimizer": True}, WINDOW, {"replicate": 4}),
        ("fsdp", WINDOW, {"shard": 4}),
        ({"type": "fsdp", "accumulate": "unsharded"}, WINDOW, {"shard": 4}),
        ("fsdp", {"activation_checkpointing": True}, {"shard": 4}),
        ("hsdp", {}, {"replicate": 2, "shard": 2}),
        (
            {"type": "tensor_parallel", "size": 2, "plan": {"layers.*.1": "column", "layers.*.3": "row"}},
            {},
            {"data": 2, "model": 2},
        ),
    ],
)
def test_memory_and_exchanges_of_what_is_sharded_on_four_ranks_are_as_planned(
    strategy: Any, more: Any, mesh: Any, four_ranks: Ranks, tmp_path: Path, capsys: Any
) -> None:
    changed: dict[str, Any] = {"strategy": strategy, "work_dir": str(tmp_path / "run"), **more}
    plan = planned(tmp_path, capsys, "--world-size", "4", **changed)
    compare(plan, four_ranks(measured, config(**changed), 2 if more is WINDOW else 1)[0])
    assert plan["mesh"] == mesh
