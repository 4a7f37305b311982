"""Processes, machines and folders that are not what the run needs."""

from pathlib import Path
from unittest import mock

from stratrun.errors import ConfigError, IncompatibleError, StorageError
from tests.mistakes.mistake import mistake, train


@mistake(
    IncompatibleError, "strategy='ddp'", "several processes", "torchrun --nproc_per_node=2", "strategy='auto'"
)
def ddp_is_started_without_torchrun(folder: Path) -> None:
    train(folder, strategy="ddp")


@mistake(IncompatibleError, "accelerator='cuda'", "cannot be used here", "accelerator='auto'", "cpu")
def cuda_is_asked_for_where_there_is_none(folder: Path) -> None:
    with mock.patch("torch.cuda.is_available", return_value=False):
        train(folder, accelerator="cuda")


@mistake(ConfigError, "RANK set", "LOCAL_RANK, WORLD_SIZE not", "torchrun", environ={"RANK": "0"})
def the_variables_of_the_launcher_are_incomplete(folder: Path) -> None:
    train(folder)


@mistake(
    ConfigError,
    "RANK=2",
    "WORLD_SIZE=2",
    "count from 0",
    environ={"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "2"},
)
def the_ranks_are_counted_from_one(folder: Path) -> None:
    train(folder)


@mistake(
    ConfigError,
    "WORLD_SIZE='two'",
    "number",
    "torchrun",
    environ={"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "two"},
)
def the_number_of_ranks_is_a_word(folder: Path) -> None:
    train(folder)


@mistake(
    IncompatibleError,
    "strategy='single'",
    "2 were launched",
    "'ddp'",
    environ={"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
)
def single_is_asked_for_on_two_ranks(folder: Path) -> None:
    train(folder, strategy="single")


@mistake(
    ConfigError,
    "MASTER_ADDR",
    "torchrun",
    environ={"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    shows="built",
)
def the_launcher_says_no_address(folder: Path) -> None:
    train(folder)


@mistake(IncompatibleError, "precision='64-true'", "mps", "cuda")
def the_precision_does_not_exist_on_the_hardware(folder: Path) -> None:
    from stratrun.accelerators import MPSAccelerator

    class PresentMPS(MPSAccelerator):
        def is_available(self) -> bool:
            return True

    train(folder, accelerator=PresentMPS(), precision="64-true")


def a_file_in_the_way(folder: Path) -> None:
    (folder / "work").write_text("notes")


@mistake(ConfigError, "work_dir=", "a file", "choose another", prepare=a_file_in_the_way)
def the_work_dir_is_a_file(folder: Path) -> None:
    train(folder)


@mistake(ConfigError, "work_dir=", "is a file", "choose another", prepare=a_file_in_the_way)
def the_work_dir_lies_below_a_file(folder: Path) -> None:
    train(folder, work_dir=folder / "work" / "run")


@mistake(StorageError, "work_dir='/proc/stratrun'", "choose another", shows="built")
def the_work_dir_cannot_be_written(folder: Path) -> None:
    train(folder, work_dir="/proc/stratrun")


@mistake(ConfigError, "s33://", "did you mean 's3'?")
def the_storage_of_the_work_dir_is_misspelt(folder: Path) -> None:
    train(folder, work_dir="s33://bucket/run")


@mistake(ConfigError, "work_dir=7", "path")
def the_work_dir_is_a_number(folder: Path) -> None:
    train(folder, work_dir=7)
