"""Configs and overrides."""

from pathlib import Path
from typing import Any

from stratrun import Runner
from stratrun.config import Config
from stratrun.errors import ConfigError, MissingArgumentError, UnknownNameError
from tests.mistakes.mistake import mistake

GOOD = """\
model: {type: Linear, in_features: 4, out_features: 3}
train_dataloader: {dataset: {type: TensorDataset}, batch_size: 4}
optimizer: {type: SGD, lr: 1e-1}
train_cfg: {by_epoch: true, max_epochs: 1}
"""


def written(text: str) -> Any:
    def write(folder: Path) -> None:
        (folder / "run.yaml").write_text(text)

    return write


def load(folder: Path, *overrides: str) -> Runner:
    return Runner.from_cfg(Config.load(folder / "run.yaml", overrides=overrides))


@mistake(ConfigError, "'optimzer'", "did you mean 'optimizer'?", "override", prepare=written(GOOD))
def an_override_is_misspelt(folder: Path) -> None:
    load(folder, "optimzer.lr=0.1")


@mistake(ConfigError, "optimizer: SGD", "'lrr'", "override 'optimizer.lrr=0.1'", prepare=written(GOOD))
def the_last_part_of_an_override_is_misspelt(folder: Path) -> None:
    load(folder, "optimizer.lrr=0.1").train()


@mistake(ConfigError, "'optimizer.lr'", "optimizer.lr=1e-3", prepare=written(GOOD))
def an_override_has_no_value(folder: Path) -> None:
    load(folder, "optimizer.lr")


@mistake(ConfigError, "'--optimizer.lr", "without '--'", "optimizer.lr=", prepare=written(GOOD))
def an_override_looks_like_an_option(folder: Path) -> None:
    load(folder, "--optimizer.lr=1")


@mistake(ConfigError, "'optimizer.lr.x=1'", "optimizer.lr", prepare=written(GOOD))
def an_override_goes_through_a_number(folder: Path) -> None:
    load(folder, "optimizer.lr.x=1")


@mistake(
    ConfigError,
    "'train_datalaoder'",
    "did you mean 'train_dataloader'?",
    "run.yaml:2",
    prepare=written("model: {type: Linear}\ntrain_datalaoder: {}\n"),
)
def a_key_of_the_config_is_misspelt(folder: Path) -> None:
    load(folder)


@mistake(
    UnknownNameError,
    "'CustomRuner'",
    "runner_type",
    "run.yaml:1",
    prepare=written(f"runner_type: CustomRuner\n{GOOD}"),
)
def the_runner_of_the_config_is_unknown(folder: Path) -> None:
    load(folder)


@mistake(
    ConfigError,
    "optimizer: SGD",
    "'learning_rate'",
    "run.yaml:3",
    prepare=written(GOOD.replace("lr:", "learning_rate:")),
)
def an_argument_in_the_config_is_misspelt(folder: Path) -> None:
    load(folder).train()


@mistake(
    MissingArgumentError, "no 'model'", "model: {type: MyNet}", prepare=written("optimizer: {type: SGD}\n")
)
def the_config_has_no_model(folder: Path) -> None:
    load(folder)


@mistake(ConfigError, "'lr'", "run.yaml:2", "keep one of them", prepare=written("a:\n  lr: 1\n  lr: 2\n"))
def a_key_of_the_config_is_there_twice(folder: Path) -> None:
    load(folder)


@mistake(ConfigError, "run.yaml:2", "mapping values", "indentation", prepare=written("a: 1\n b: 2\n"))
def the_config_is_badly_indented(folder: Path) -> None:
    load(folder)


@mistake(ConfigError, "rnu.yaml", "did you mean 'run.yaml'?", prepare=written(GOOD))
def the_path_of_the_config_is_misspelt(folder: Path) -> None:
    Config.load(folder / "rnu.yaml")


@mistake(ConfigError, "run.yml2", ".yaml", prepare=lambda folder: (folder / "run.yml2").write_text("a: 1"))
def the_config_has_an_unknown_suffix(folder: Path) -> None:
    Config.load(folder / "run.yml2")


@mistake(
    ConfigError,
    "my.package.Net",
    "run.yaml:1",
    "allow",
    prepare=written("model: {type: my.package.Net}\n"),
)
def a_config_names_code_by_its_path(folder: Path) -> None:
    load(folder)


@mistake(ConfigError, "from_cfg", "str", "Config.load")
def the_path_of_a_config_is_given_in_its_place(folder: Path) -> None:
    Runner.from_cfg("run.yaml")  # type: ignore[arg-type]
