"""Every strategy that there is passes the checks, and so does one that another distribution offers."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratrun.registry import STRATEGIES
from stratrun.testing import Report, check_strategy
from stratrun.testing.strategy import CLAIMS

pytestmark = [pytest.mark.usefixtures("ready_ranks"), pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PLAN = {"blocks.*.up": "column", "blocks.*.down": "row"}
# Those that need settings, or more ranks than two, to be what they are.
SETTINGS: dict[str, tuple[Any, int | None]] = {
    "hsdp": ("hsdp", 4),
    "tensor_parallel": ({"type": "tensor_parallel", "plan": PLAN, "size": 2}, 4),
}


def unchecked(report: Report) -> set[str]:
    return {finding.name for finding in report.findings if finding.outcome == "skipped"}


# What these have from the other sharded ones, which is not run again on four ranks.
SHARED = {"two optimizers", "thawing", "weighted losses", "unforeseen end", "mixed precision", "failed save"}


@pytest.mark.parametrize("name", sorted(STRATEGIES.entries()))
def test_each_built_in_strategy_passes(name: str) -> None:
    spec, world_size = SETTINGS.get(name, (name, None))
    only = [check for check in CLAIMS if world_size is None or check not in SHARED]
    report = check_strategy(spec, world_size=world_size, only=only)
    assert [finding.name for finding in report.findings] == only
    several = {"traffic", "failed save", "failed rank"} if name == "single" else set()
    assert unchecked(report) == several


def test_ddp_passes_on_four_ranks_three_of_which_have_no_sample_in_the_last_batch() -> None:
    checks = ("start", "weights", "accumulation", "weighted losses", "traffic", "evaluation", "resuming")
    report = check_strategy("ddp", world_size=4, only=checks)
    assert unchecked(report) == set()


def test_ddp_whose_updates_are_divided_among_the_ranks_passes() -> None:
    report = check_strategy({"type": "ddp", "shard_optimizer": True})
    assert unchecked(report) == set()
    assert "1 allgather_base" in report.finding("traffic").told


def test_gradients_that_are_kept_whole_within_a_window_are_exchanged_at_its_end_and_saved_in_it() -> None:
    checks = ("accumulation", "unforeseen end", "traffic", "resuming", "to one process")
    report = check_strategy({"type": "fsdp", "accumulate": "unsharded"}, only=checks)
    # The one sum is whether the parts of the gradients are finite on all ranks.
    assert report.finding("traffic").told == (
        "within: 5 allgather_base; at its end: 5 allgather_base, 1 allreduce, 3 reduce_scatter_base"
    )


def test_ranks_that_compute_all_layers_together_pass_without_others() -> None:
    spec = {"type": "tensor_parallel", "plan": PLAN, "size": 2}
    checks = ("weights", "clipping", "evaluation", "resuming", "overflow")
    assert unchecked(check_strategy(spec, world_size=2, only=checks)) == set()


# A third party ---------------------------------------------------------------------------------------------


def strategy_of_the_page() -> str:
    """The program of the page on custom strategies."""
    page = (ROOT / "docs" / "custom_strategy.md").read_text()
    found = re.search(r"```python\n# file: flat\.py\n(.*?)```", page, re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package of somebody else, which offers a strategy called `flattened` by entry point."""
    text = strategy_of_the_page()
    assert '@STRATEGIES.register_module("flat")\n' in text
    text = text.replace('@STRATEGIES.register_module("flat")\n', "").replace('"flat"', '"flattened"')
    assert len([line for line in text.splitlines() if line.strip()]) <= 60
    (tmp_path / "somebody_s").mkdir()
    (tmp_path / "somebody_s" / "__init__.py").touch()
    (tmp_path / "somebody_s" / "flat.py").write_text(text)
    about = tmp_path / "somebody_s_strategies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody_s_strategies\nVersion: 1.0\n")
    entry = "[stratrun.strategies]\nflattened = somebody_s.flat:FlatStrategy\n"
    (about / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield "flattened"
    for name in [name for name in sys.modules if name.partition(".")[0] == "somebody_s"]:
        del sys.modules[name]
    STRATEGIES._plugins.pop("flattened", None)


def test_a_strategy_of_sixty_lines_from_another_distribution_passes(distribution: str) -> None:
    report = check_strategy(distribution)
    # It says itself that it takes one optimizer only.
    assert unchecked(report) == {"two optimizers"}
    assert "1 allreduce" in report.finding("traffic").told
