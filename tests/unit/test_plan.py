"""``stratrun plan``: figures that can be worked out by hand, mistakes, and models that need values."""

import gc
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun import MODELS
from stratrun.cli.main import run
from stratrun.cli.plan.command import bytes_of
from stratrun.cli.plan.ledger import OTHER, Ledger
from stratrun.cli.plan.meter import Meter
from stratrun.errors import ConfigError
from tests.plans import VALUES, Stack, config, planned

WIDTH, DEPTH = 32, 4
NUMBERS = sum(p.numel() for p in Stack(WIDTH, DEPTH).parameters())
TENSORS = len(list(Stack(WIDTH, DEPTH).parameters()))


@MODELS.register_module(force=True)
class Choosy(Stack):
    """Computes with its weights while it is built, and drops rows by their values when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = float(self.head.weight.abs().max()) + 1

    def train_step(self, numbers: Any) -> Any:
        outputs = self(numbers)
        return outputs[outputs > self.scale].sum() + outputs.mean()


@MODELS.register_module(force=True)
class Watchful(Stack):
    """Looks at its loss."""

    def train_step(self, numbers: Any) -> Any:
        loss = super().train_step(numbers)
        return {"loss": loss, "shown": loss.item()}


def failure(folder: Path, capsys: Any, *options: str, **changed: Any) -> str:
    (folder / "run.json").write_text(json.dumps(config(**changed)))
    assert run(["plan", str(folder / "run.json"), *options]) == 2
    return str(capsys.readouterr().err)


def test_lasting_memory_and_the_checkpoint_of_one_rank_are_those_of_the_tensors(
    tmp_path: Path, capsys: Any
) -> None:
    plan = planned(tmp_path, capsys, "--bandwidth", "1kB")
    assert plan["parameters"] == plan["trainable"] == NUMBERS
    assert plan["memory"]["weights"] == plan["memory"]["gradients"] == 4 * NUMBERS
    # Two moments of each weight, and a count of steps for each tensor.
    assert plan["memory"]["optimizer"] == 8 * NUMBERS + 4 * TENSORS
    assert plan["checkpoint"] == {
        "bytes": 12 * NUMBERS + 4 * TENSORS,
        "seconds": (12 * NUMBERS + 4 * TENSORS) / 1000,
    }
    assert plan["exchanges"] == {"of_an_update": [], "sent_per_rank": 0}
    assert plan["peak"]["phase"] == "backward"
    assert sum(plan["peak"]["parts"].values()) == plan["peak"]["total"]
    assert plan["remarks"] == []


def test_averages_and_number_formats_are_counted(tmp_path: Path, capsys: Any) -> None:
    changed: dict[str, Any] = {"precision": "bf16-true", "custom_hooks": [{"type": "EMAHook"}]}
    plan = planned(tmp_path, capsys, **changed)
    assert plan["memory"]["weights"] == plan["memory"]["gradients"] == 2 * NUMBERS
    assert plan["memory"]["averages"] == 4 * NUMBERS
    assert plan["checkpoint"]["bytes"] == (2 + 2 * 2 + 4) * NUMBERS + 4 * TENSORS


def test_ddp_exchanges_gradients_once_an_update_however_long_the_window(tmp_path: Path, capsys: Any) -> None:
    for accumulate in (1, 2, 7):
        changed = {"strategy": "ddp", "train_cfg": {"max_epochs": 1, "accumulate": accumulate}}
        plan = planned(tmp_path, capsys, "--world-size", "1000", **changed)
        assert plan["exchanges"]["of_an_update"] == [
            {"name": "all_reduce", "ranks": 1000, "count": 1, "bytes": 4 * NUMBERS}
        ]
        assert plan["exchanges"]["sent_per_rank"] == 2 * 4 * NUMBERS * 999 // 1000
        assert (plan["batch"], plan["data_ranks"], plan["accumulate"]) == (4, 1000, accumulate)


def test_divided_updates_leave_a_rank_its_part_of_the_state_and_bring_weights_to_all(
    tmp_path: Path, capsys: Any
) -> None:
    strategy = {"type": "ddp", "shard_optimizer": True}
    plain = planned(tmp_path, capsys, "--world-size", "4", strategy="ddp")
    plan = planned(tmp_path, capsys, "--world-size", "4", strategy=strategy)
    assert plain["memory"]["optimizer"] == 8 * NUMBERS + 4 * TENSORS
    assert 2 * NUMBERS <= plan["memory"]["optimizer"] < 2.1 * NUMBERS + 4 * TENSORS
    assert plan["checkpoint"]["bytes"] == pytest.approx(plain["checkpoint"]["bytes"], rel=0.01)
    sent = plan["exchanges"]["sent_per_rank"] - plain["exchanges"]["sent_per_rank"]
    assert 3 * NUMBERS <= sent < 3.2 * NUMBERS


def test_windows_that_change_are_planned_at_their_longest_and_that_is_told(
    tmp_path: Path, capsys: Any
) -> None:
    window = {"max_epochs": 3, "accumulate": [[0, 1], [1, 4], [2, 2]]}
    plan = planned(tmp_path, capsys, train_cfg=window)
    assert plan["accumulate"] == 4
    assert plan["remarks"] == [
        "accumulate=[[0, 1], [1, 4], [2, 2]] changes; the figures are of updates of 4 batches"
    ]
    assert planned(tmp_path, capsys, train_cfg={"max_epochs": 3, "accumulate": {"0": 3}})["accumulate"] == 3


def test_groups_and_scaled_rates_are_planned_as_they_are_trained(tmp_path: Path, capsys: Any) -> None:
    optimizer = {
        "type": "AdamW",
        "paramwise": {"layer_decay": 0.5, "norm_decay_mult": 0},
        "scale_lr": {"base_batch_size": 64},
    }
    plan = planned(tmp_path, capsys, "--world-size", "8", "--strategy", "fsdp", optimizer=optimizer)
    assert plan["memory"] == planned(tmp_path, capsys, "--world-size", "8", "--strategy", "fsdp")["memory"]


def test_the_batch_is_that_of_one_rank_or_the_one_asked_for(tmp_path: Path, capsys: Any) -> None:
    data = {"dataset": {"type": "Rows"}, "global_batch_size": 64}
    options = ("--world-size", "8", "--strategy", "ddp")
    assert planned(tmp_path, capsys, *options, train_dataloader=data)["batch"] == 8
    more = planned(tmp_path, capsys, *options, "--batch-size", "32", train_dataloader=data)
    assert more["batch"] == 32
    assert "global_batch_size=64 cannot be shared equally by 7 ranks" in failure(
        tmp_path, capsys, "--world-size", "7", "--strategy", "ddp", train_dataloader=data
    )


def test_of_several_loaders_the_first_is_planned_with_or_all_together(tmp_path: Path, capsys: Any) -> None:
    loaders = {
        "small": {"dataset": {"type": "Rows"}, "global_batch_size": 16},
        "large": {"dataset": {"type": "RepeatDataset", "dataset": {"type": "Rows"}, "times": 2}},
    }
    data = {"type": "MultiLoader", "loaders": loaders, "mode": "round_robin"}
    options = ("--world-size", "8", "--strategy", "ddp")
    plan = planned(tmp_path, capsys, *options, train_dataloader=data)
    assert plan["batch"] == 2
    assert "batches as 'small' gives them" in " ".join(plan["remarks"])
    assert planned(tmp_path, capsys, *options, "--batch-size", "9", train_dataloader=data)["batch"] == 9
    assert "train_dataloader.loaders.small: global_batch_size=16 cannot be shared equally by 7" in failure(
        tmp_path, capsys, "--world-size", "7", "--strategy", "ddp", train_dataloader=data
    )


def test_a_model_far_larger_than_memory_is_planned_without_any(tmp_path: Path, capsys: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = {"type": "Stack", "width": 100_000, "depth": 4}
    plan = planned(tmp_path, capsys, "--world-size", "2", model=model, strategy="ddp")
    assert plan["memory"]["weights"] > 300e9
    assert plan["peak"]["total"] > 4 * 300e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_step_that_depends_on_values_leaves_the_other_figures(tmp_path: Path, capsys: Any) -> None:
    plan = planned(tmp_path, capsys, model={"type": "Choosy"})
    assert plan["peak"] is None
    assert plan["memory"]["optimizer"] == 8 * NUMBERS + 4 * TENSORS
    assert plan["memory"]["gradients"] == 4 * NUMBERS
    assert len(plan["remarks"]) == 2
    assert "built in memory" in plan["remarks"][0]
    assert "could not be gone through without values" in plan["remarks"][1]


def test_values_that_are_read_are_told_of(tmp_path: Path, capsys: Any) -> None:
    plan = planned(tmp_path, capsys, model={"type": "Watchful"})
    assert plan["remarks"] == [
        "3 values of tensors were read in three updates; they are not there and were taken for 0, so what "
        "depends on them may be otherwise"
    ]
    plain = planned(tmp_path, capsys, precision="16-mixed")
    assert plain["remarks"] == []


def test_the_report_for_readers_says_the_same(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps(config(strategy="ddp")))
    assert run(["plan", str(tmp_path / "run.json"), "--world-size", "4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ddp on 4 ranks (replicate 4), 32-true\n{NUMBERS:,} parameters\n")
    assert "16 samples an update: 4 x 4 ranks" in said
    assert "at most, in the backward" in said
    assert "checkpoint: " in said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--world-size", "0"], "--world-size 0: must be at least 1"),
        (["--world-size", "4", "--per-node", "3"], "--per-node 3: the 4 of --world-size must be a multiple"),
        (["--bandwidth", "fast"], "--bandwidth fast: must be a size above 0, such as 500MB"),
        (["--bandwidth", "0MB"], "--bandwidth 0MB: must be a size above 0"),
        (["--strategy", "dpp", "--world-size", "2"], "did you mean 'ddp'"),
        (["--strategy", "single", "--world-size", "2"], "runs in one process, but 2 were launched"),
    ],
)
def test_mistakes_are_told(options: list[str], why: str, tmp_path: Path, capsys: Any) -> None:
    assert why in failure(tmp_path, capsys, *options)


def test_plan_starts_nothing_and_says_so_under_a_launcher(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "run.json").write_text(json.dumps(config()))
    with pytest.raises(ConfigError, match="run it without torchrun"):
        from stratrun.cli.dispatch import command

        command(["plan", str(tmp_path / "run.json")])


def test_sizes_may_be_given_in_any_unit() -> None:
    assert [bytes_of(text) for text in ("500MB", "2GB/s", "1.5T", "8kB", "7")] == [5e8, 2e9, 1.5e12, 8e3, 7.0]


def test_the_meter_knows_what_is_alive_when() -> None:
    with Meter() as meter:
        meter.ledger.mark("first")
        kept = torch.zeros(1000)
        meter.ledger.name([kept], "weights")
        (torch.ones(500) + 1).sum()
        gc.collect()
        assert meter.ledger.live == 4000
        view = kept[10:]
        meter.ledger.mark("second")
        del kept
        gc.collect()
        assert meter.ledger.live == 4000
        other = torch.zeros(2000)
        storage = other.untyped_storage()
        storage.resize_(0)
        assert meter.ledger.live == 4000
        del view, other, storage
    peak, most = meter.ledger.most()
    assert (peak.total, peak.phase, peak.parts) == (12000, "second", {"weights": 4000, "gathered": 8000})
    assert most == {"weights": 4000, "gathered": 8000, OTHER: 4000}


def test_tensors_that_autograd_keeps_are_alive() -> None:
    layer = nn.Linear(8, 8)
    with Meter() as meter:
        loss = layer(torch.ones(4, 8)).exp().sum()
        held = meter.ledger.live
        loss.backward()
        del loss
        assert held - meter.ledger.live >= 4 * 4 * 8 - sum(4 * p.numel() for p in layer.parameters())


def test_a_ledger_names_memory_in_hindsight() -> None:
    ledger = Ledger()
    ledger.mark("step")
    tensor = torch.zeros(VALUES)
    ledger.see(tensor.untyped_storage())
    assert ledger.name([tensor, tensor.view(4, 4)], "gradients") == 4 * VALUES
    assert ledger.most()[0].parts == {"gradients": 4 * VALUES}
