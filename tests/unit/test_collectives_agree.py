"""What fails on one rank is told to all of them."""

import os

from stratrun import Runner
from stratrun.checkpoint import discovery
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import ConfigError, StratrunError
from tests.problems import QUIET, perceptron, points
from tests.ranks import Ranks


def raised_on_rank_1(kind: str) -> tuple[str, str]:
    class Theirs(ConfigError):
        """A class that no other process finds by its name, and that is not made of a text."""

        def __init__(self, place: int, reason: str) -> None:
            super().__init__(f"{place}: {reason}")

    class Foreign(Exception):
        """Not of ours at all."""

    ranks = Collectives(ProcessEnv.from_environ())
    errors = {"theirs": Theirs(3, "wrong"), "foreign": Foreign("wrong"), "none": None}
    try:
        ranks.agree(errors[kind] if ranks.rank == 1 else None, "reading")
    except StratrunError as error:
        return type(error).__name__, str(error)
    return "", ""


def test_a_failure_is_told_with_the_nearest_class_of_ours(two_ranks: Ranks) -> None:
    assert two_ranks(raised_on_rank_1, "none") == [("", "")] * 2
    told = ("ConfigError", "reading failed on rank 1: 3: wrong")
    assert two_ranks(raised_on_rank_1, "theirs") == [told] * 2
    told = ("StratrunError", "reading failed on rank 1: Foreign: wrong")
    assert two_ranks(raised_on_rank_1, "foreign") == [told] * 2


def resumed_from_a_store_that_fails(work_dir: str) -> str:
    def unreachable(*args: object) -> None:
        raise ConnectionError("no route to the store")

    original = discovery.committed_steps
    if os.environ["RANK"] == "0":
        discovery.committed_steps = unreachable
    runner = Runner(
        perceptron(),
        train_dataloader={"dataset": points(8), "batch_size": 2},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.1},
        loss="cross_entropy",
        work_dir=work_dir,
        resume=True,
        **QUIET,
    )
    try:
        runner.train()
    except StratrunError as error:
        return str(error)
    finally:
        discovery.committed_steps = original
    return ""


def test_a_store_that_only_the_main_rank_looks_into_fails_on_all(two_ranks: Ranks, tmp_path: object) -> None:
    told = "resuming failed on rank 0: ConnectionError: no route to the store"
    assert two_ranks(resumed_from_a_store_that_fails, str(tmp_path)) == [told] * 2
