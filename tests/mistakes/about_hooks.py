"""Hooks of the user's, and settings of ours."""

from pathlib import Path
from typing import Any

from stratrun import Hook
from stratrun.errors import ConfigError, UnknownNameError
from tests.mistakes.mistake import mistake, train


class Misspelt(Hook):
    """A hook that is never called."""

    def after_trian_epoch(self) -> None: ...


class Curious(Hook):
    """A hook that wants what the point does not give."""

    def after_train_iter(self, batch_index: int) -> None: ...


class Lone:
    """A hook in all but its base class."""

    def after_train_epoch(self, runner: Any) -> None: ...


@mistake(ConfigError, "Misspelt.after_trian_epoch", "did you mean 'after_train_epoch'?")
def a_point_is_misspelt(folder: Path) -> None:
    train(folder, custom_hooks=[Misspelt()])


@mistake(ConfigError, "Misspelt.after_trian_epoch", "did you mean 'after_train_epoch'?")
def a_point_of_a_hook_to_build_is_misspelt(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": Misspelt}])


@mistake(ConfigError, "Curious.after_train_iter", "'batch_index'", "did you mean 'batch_idx'?")
def a_hook_asks_for_an_unknown_detail(folder: Path) -> None:
    train(folder, custom_hooks=[Curious()])


@mistake(ConfigError, "Curious.after_train_iter", "'batch_index'", "did you mean 'batch_idx'?")
def a_hook_to_build_asks_for_an_unknown_detail(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": Curious}])


@mistake(ConfigError, "custom_hooks.0", "Lone", "Hook")
def a_hook_does_not_derive_from_hook(folder: Path) -> None:
    train(folder, custom_hooks=[Lone()])


@mistake(ConfigError, "custom_hooks.0", "Lone", "Hook")
def a_hook_to_build_does_not_derive_from_hook(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": Lone}])


@mistake(ConfigError, "EMAHook and SWAHook", "keep one of them")
def two_hooks_have_averages_to_show(folder: Path) -> None:
    train(folder, custom_hooks=["EMAHook", {"type": "SWAHook", "begin": 1}])


@mistake(ConfigError, "custom_hooks=", "list")
def the_hooks_are_one_hook(folder: Path) -> None:
    train(folder, custom_hooks=Misspelt())


@mistake(ConfigError, "custom_hooks=", "list")
def the_hooks_are_one_dict(folder: Path) -> None:
    train(folder, custom_hooks={"type": Misspelt})


@mistake(UnknownNameError, "custom_hooks.0='EarlyStopingHook'", "hooks entry")
def a_hook_is_an_unknown_name(folder: Path) -> None:
    train(folder, custom_hooks=["EarlyStopingHook"])


@mistake(ConfigError, "default_hooks", "'logging'", "did you mean 'logger'?")
def a_default_hook_is_misspelt(folder: Path) -> None:
    train(folder, default_hooks={"logging": {"interval": 5}})


@mistake(ConfigError, "default_hooks", "list", "dict")
def the_default_hooks_are_a_list(folder: Path) -> None:
    train(folder, default_hooks=[{"type": "LoggerHook"}])


@mistake(ConfigError, "default_hooks.logger: LoggerHook", "'intervall'", "did you mean 'interval'?")
def an_argument_of_a_hook_is_misspelt(folder: Path) -> None:
    train(folder, default_hooks={"logger": {"interval": 5, "intervall": 5}})


@mistake(ConfigError, "default_hooks.logger", "LoggerHook", "interval=0", "at least 1")
def logs_come_every_zero_iterations(folder: Path) -> None:
    train(folder, default_hooks={"logger": {"interval": 0}})


@mistake(ConfigError, "default_hooks.checkpoint", "interval='1'", "number")
def the_interval_of_checkpoints_is_a_string(folder: Path) -> None:
    train(folder, default_hooks={"checkpoint": {"interval": "1"}})


@mistake(ConfigError, "priority='HIHG'", "did you mean 'HIGH'?")
def the_priority_of_a_hook_is_misspelt(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": "IterTimerHook", "priority": "HIHG"}])


@mistake(ConfigError, "priority=500", "0 to 100")
def the_priority_of_a_hook_is_too_large(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": "IterTimerHook", "priority": 500}])


@mistake(ConfigError, "'speed'", "'fast' is not a single number", "Late.before_train", shows="running")
def a_hook_logs_a_word(folder: Path) -> None:
    class Late(Hook):
        def before_train(self, runner: Any) -> None:
            runner.log({"speed": "fast"})

    train(folder, custom_hooks=[Late()])


@mistake(ConfigError, "Lightning.on_train_epoch_end", "did you mean 'after_train_epoch'?")
def a_point_is_called_as_in_lightning(folder: Path) -> None:
    class Lightning(Hook):
        def on_train_epoch_end(self, runner: Any) -> None: ...

    train(folder, custom_hooks=[Lightning()])


@mistake(
    ConfigError,
    "save_best='acuracy'",
    "more or less of it is better",
    "did you mean 'accuracy'?",
    shows="built",
)
def the_metric_to_keep_the_best_by_is_misspelt(folder: Path) -> None:
    train(folder, default_hooks={"checkpoint": {"save_best": "acuracy"}})


@mistake(ConfigError, "monitor='los'", "more or less of it is better", "did you mean 'loss'?", shows="built")
def the_metric_to_stop_by_is_misspelt(folder: Path) -> None:
    train(folder, custom_hooks=[{"type": "EarlyStoppingHook", "monitor": "los"}])
