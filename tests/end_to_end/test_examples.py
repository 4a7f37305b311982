"""The examples run as they stand and learn something: alone, and under ddp with one and two ranks."""

import json
import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rank_server import RankServer
from tests.ranks import Ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 170
WAYS = {"single": (1, None), "ddp-1": (1, "ddp"), "ddp-2": (2, "ddp")}
SHARDED = {"fsdp-2": (2, "fsdp")}
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

pytestmark = pytest.mark.timeout(SECONDS + 10)


class Program:
    """Runs an example in processes of its own, in the current folder, and reads what it logged."""

    def __init__(self, server: RankServer, way: str) -> None:
        self.world_size, self.strategy = (WAYS | SHARDED)[way]
        self._ranks = Ranks(server, self.world_size, joined=False, limit=SECONDS)

    def run(self, name: str, words: dict[str, str] | None = None) -> None:
        """
        Args:
            words: What to read in place of what, if it is there.
        """
        source = (EXAMPLES / name).read_text()
        named = {} if self.strategy is None else {'strategy="auto"': f'strategy="{self.strategy}"'}
        for word, other in {**named, **(words or {})}.items():
            source = source.replace(word, other)
        Path(name).write_text(source)
        self._ranks(run_script, name, self.strategy)

    def run_command(self, *words: str) -> list[int]:
        strategy = [f"strategy={self.strategy}"] if self.strategy else []
        return self._ranks(run_command, [*words, *strategy], bool(self.strategy))

    def last(self, kind: str) -> dict[str, Any]:
        """All values that were logged last in an evaluation of that kind."""
        [log] = Path("work_dirs").glob("*/runs/*/metrics.jsonl")
        rows = [json.loads(row) for row in log.read_text().splitlines()]
        together: dict[str, Any] = {}
        for row in rows:
            together.update(row if row["kind"] == kind else {})
        return together

    @property
    def output(self) -> list[str]:
        return self._ranks.output

    def stop(self) -> None:
        self._ranks.stop()


def run_script(path: str, strategy: str | None) -> None:
    """As ``python path`` would; under a launcher with the strategy that is asked for."""
    from stratrun import Runner

    if strategy is None:
        forget_launcher()
    else:
        defaults = Runner.__init__.__kwdefaults__
        assert defaults is not None
        defaults["strategy"] = strategy
    runpy.run_path(path, run_name="__main__")


def run_command(words: list[str], launched: bool) -> int:
    from stratrun.cli.main import run

    if not launched:
        forget_launcher()
    return run(words)


def forget_launcher() -> None:
    for name in LAUNCHED:
        os.environ.pop(name, None)


@pytest.fixture(params=WAYS)
def program(
    request: pytest.FixtureRequest, two_ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    monkeypatch.chdir(tmp_path)
    program = Program(two_ranks.server, request.param)
    yield program
    program.stop()


def test_image_classification_reads_nearly_all_digits(program: Program) -> None:
    program.run("image_classification.py")
    assert program.last("test")["accuracy"] > 0.95


def test_the_config_of_the_digits_reads_nearly_all_of_them(program: Program) -> None:
    shutil.copytree(EXAMPLES, "examples")
    config, source = "examples/configs/digits.yaml", "examples/image_classification.py"
    assert set(program.run_command("train", config, "--import", source)) == {0}
    assert program.last("val")["accuracy"] > 0.95


def test_char_gpt_beats_any_model_that_sees_one_character_only(program: Program) -> None:
    # The entropy of a character of this text, given the one before it, is 2.46.
    program.run("char_gpt.py")
    assert program.last("val")["loss"] < 2.3
    assert [text.count("--- The ") for text in program.output] == [1, 0][: program.world_size]


@pytest.mark.parametrize("program", SHARDED, indirect=True)
def test_char_gpt_learns_with_each_process_holding_half_of_it_by_one_word(program: Program) -> None:
    program.run("char_gpt.py", {"ITERATIONS, CONTEXT, PAD = 250": "ITERATIONS, CONTEXT, PAD = 60"})
    assert program.last("val")["loss"] < 2.8
    assert "strategy=fsdp" in program.output[0]
    assert [text.count("--- The ") for text in program.output] == [1, 0]


def test_the_gan_draws_digits_closer_to_real_ones_than_their_mean_is(program: Program) -> None:
    # The mean of all digits is at 0.22, other scanned digits are at 0.035.
    program.run("gan.py")
    assert program.last("val")["sliced_distance"] < 0.15


def test_the_custom_loop_measures_both_data_sets_and_its_hook_the_second(program: Program) -> None:
    program.run("custom_val_loop.py")
    values = program.last("val")
    assert values["accuracy"] > 0.85
    assert 0.6 < values["noisy/accuracy"] < values["accuracy"]
    assert 0.6 < values["noisy/confidence"] < 1.0
