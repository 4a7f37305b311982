"""Weights and runs to go on from."""

from pathlib import Path

import torch
from torch import nn

from stratrun.errors import (
    CheckpointCorruptedError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
)
from tests.mistakes.mistake import mistake, runner, samples, train


def an_earlier_run(folder: Path) -> None:
    train(folder)


def a_damaged_run(folder: Path) -> None:
    train(folder)
    for shard in folder.rglob("*.safetensors"):
        shard.write_bytes(b"\0" * shard.stat().st_size)


def weights_of_another(folder: Path) -> None:
    torch.save(nn.Linear(5, 3).state_dict(), folder / "other.pt")


def a_file_of_weights(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(b"")


def a_pickled_model(folder: Path) -> None:
    torch.save(nn.Linear(4, 3), folder / "model.pt")


@mistake(CheckpointNotFoundError, "resume=True", "work", "resume='auto'", shows="built")
def there_is_no_checkpoint_to_resume_from(folder: Path) -> None:
    train(folder, resume=True)


@mistake(CheckpointNotFoundError, "resume=", "nowhere", shows="built")
def the_run_to_resume_is_not_there(folder: Path) -> None:
    train(folder, resume=str(folder / "nowhere"))


@mistake(
    CheckpointNotFoundError,
    "resume='x.safetensors'",
    "file of weights",
    "load_from=",
    prepare=a_file_of_weights,
    shows="built",
)
def a_file_of_weights_is_to_be_resumed(folder: Path) -> None:
    train(folder, resume="x.safetensors")


@mistake(CheckpointNotFoundError, "resume='Auto'", "did you mean 'auto'", shows="built")
def auto_is_written_in_another_way(folder: Path) -> None:
    train(folder, resume="Auto")


@mistake(
    CheckpointNotFoundError,
    "resume=",
    "work/bset",
    "did you mean the name 'best'",
    prepare=an_earlier_run,
    shows="built",
)
def the_best_to_resume_is_misspelt(folder: Path) -> None:
    train(folder / "new", resume="work/bset")


@mistake(
    CheckpointCorruptedError,
    "every checkpoint in",
    "step 4",
    "digest",
    prepare=a_damaged_run,
    shows="running",
)
def every_checkpoint_is_damaged(folder: Path) -> None:
    train(folder, resume=True, train_cfg={"max_epochs": 2})


@mistake(
    CheckpointError,
    "already holds checkpoints",
    "resume=True",
    "another work_dir",
    prepare=an_earlier_run,
    shows="built",
)
def the_work_dir_holds_the_checkpoints_of_another_run(folder: Path) -> None:
    train(folder)


@mistake(ConfigError, "resume='yes'", "'auto'")
def resume_is_a_word(folder: Path) -> None:
    train(folder, resume="yes")


@mistake(ConfigError, "resume", "load_from", "one of them")
def both_resume_and_load_from_are_given(folder: Path) -> None:
    train(folder, resume=True, load_from="x.pt")


@mistake(CheckpointNotFoundError, "load_from=", "weights.pt", "work/weights.pt", shows="built")
def the_weights_are_not_there(folder: Path) -> None:
    train(folder, load_from="work/weights.pt")


@mistake(
    CheckpointError,
    "load_from=",
    "does not fit",
    "weight",
    "(3, 5)",
    "(3, 4)",
    prepare=weights_of_another,
    shows="running",
)
def the_weights_have_other_shapes(folder: Path) -> None:
    train(folder, load_from=folder / "other.pt")


@mistake(
    CheckpointError,
    "load_from=",
    "it lacks '0.weight'",
    "it has 'weight'",
    prepare=weights_of_another,
    shows="running",
)
def the_weights_have_other_names(folder: Path) -> None:
    train(folder, model=nn.Sequential(nn.Linear(5, 3)), load_from=folder / "other.pt")


@mistake(CheckpointError, "load_from=", "model.pt", "state_dict()", prepare=a_pickled_model, shows="running")
def the_weights_are_a_pickled_model(folder: Path) -> None:
    train(folder, load_from=folder / "model.pt")


@mistake(CheckpointError, "load_from=", "notes.txt", ".safetensors", shows="running")
def the_weights_are_of_an_unknown_kind(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    train(folder, load_from=folder / "notes.txt")


@mistake(ConfigError, "load_from", "'optimiser'", "did you mean 'optimizer'?")
def a_part_to_load_is_misspelt(folder: Path) -> None:
    train(folder, load_from={"path": "x", "parts": ["model", "optimiser"]})


@mistake(ConfigError, "load_from", "'scheduler'", "'optimizer'", "add it")
def a_schedule_is_loaded_without_the_optimizer_that_it_moves(folder: Path) -> None:
    train(folder, load_from={"path": "x", "parts": ["model", "scheduler"]})


@mistake(ConfigError, "load_from", "'head(.*'", "no regular expression", "unterminated")
def a_name_to_load_under_is_no_regular_expression(folder: Path) -> None:
    train(folder, load_from={"path": "x", "rename": {"head(.*": "fc"}})


@mistake(ConfigError, "load_from='x.pt'", "no 'optimizer'", "leave those out", "a checkpoint")
def a_file_of_weights_is_to_give_an_optimizer(folder: Path) -> None:
    train(folder, load_from={"path": "x.pt", "parts": ["model", "optimizer"]})


@mistake(ConfigError, "load_from takes no 'mappings'", "rename")
def a_key_of_load_from_is_unknown(folder: Path) -> None:
    train(folder, load_from={"path": "x", "mappings": {}})


@mistake(
    ConfigError,
    "load_from=",
    "'^backbone' matches none of the 2 names",
    "'weight'",
    prepare=weights_of_another,
    shows="running",
)
def a_renaming_matches_nothing(folder: Path) -> None:
    train(folder, load_from={"path": folder / "other.pt", "rename": {"^backbone": "x"}})


@mistake(
    CheckpointError,
    "load_from=",
    "it lacks '0.weight'",
    r"rename={r'^(.*)': r'0.\1'}",
    "strict=False",
    prepare=weights_of_another,
    shows="running",
)
def the_weights_lack_a_prefix(folder: Path) -> None:
    train(folder, model=nn.Sequential(nn.Linear(5, 3)), load_from={"path": folder / "other.pt"})


@mistake(CheckpointError, "load_from=", "moving averages", "EMAHook", prepare=an_earlier_run, shows="running")
def averages_are_asked_for_and_none_were_kept(folder: Path) -> None:
    train(folder / "new", load_from={"path": folder / "work", "weights": "ema"})


@mistake(
    CheckpointNotFoundError,
    "load_from='best'",
    "no metric was watched",
    "'last'",
    prepare=an_earlier_run,
    shows="built",
)
def the_best_is_asked_for_and_no_metric_was_watched(folder: Path) -> None:
    runner(folder, load_from="best", test_dataloader=samples(), test_evaluator={"type": "Accuracy"}).test()


@mistake(
    CheckpointNotFoundError,
    "load_from='work/bset'",
    "did you mean the name 'best'?",
    prepare=an_earlier_run,
    shows="built",
)
def the_name_of_the_best_is_misspelt(folder: Path) -> None:
    train(folder / "new", load_from="work/bset")


@mistake(ConfigError, "resume='newest'", "True")
def the_newest_is_called_by_another_word(folder: Path) -> None:
    train(folder, resume="newest")


@mistake(CheckpointError, "does not fit the checkpoint", "0.weight", prepare=an_earlier_run, shows="running")
def the_run_to_resume_had_another_model(folder: Path) -> None:
    train(folder, model=nn.Sequential(nn.Linear(4, 3)), resume=True, train_cfg={"max_epochs": 2})


@mistake(CheckpointError, "param_scheduler", "load_from", prepare=an_earlier_run, shows="running")
def the_run_to_resume_had_no_schedule(folder: Path) -> None:
    train(
        folder,
        param_scheduler={"type": "StepLR", "step_size": 1},
        resume=True,
        train_cfg={"max_epochs": 2},
    )
