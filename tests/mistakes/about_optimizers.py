"""Optimizers and schedules."""

from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from stratrun import EpochBasedTrainLoop
from stratrun.errors import ConfigError, MissingArgumentError
from stratrun.runner import BaseLoop
from tests.mistakes.mistake import mistake, runner, train

TWO = {
    name: {"type": "SGD", "lr": 0.1, "params": part}
    for name, part in (("lower", "weight"), ("upper", "bias"))
}


class OwnRun(BaseLoop):
    def run(self) -> None:
        for idx, batch in enumerate(self.dataloader):
            self.run_iter(idx, batch)


@mistake(ConfigError, "optimizer: a list is no optimizer", "several by name")
def the_optimizers_are_a_list(folder: Path) -> None:
    model = nn.Linear(4, 3)
    train(folder, model=model, optimizer=[SGD(model.parameters(), lr=0.1)])


@mistake(ConfigError, "optimizer", "2 of the parameters", "not the model's", "dict(type='SGD'", shows="built")
def the_optimizer_is_of_another_model(folder: Path) -> None:
    train(folder, optimizer=SGD(nn.Linear(4, 3).parameters(), lr=0.1))


@mistake(ConfigError, "optimizer: SGD", "lr='0.1'", "write a number, lr=0.1")
def the_learning_rate_is_a_string(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "lr": "0.1"})


@mistake(ValueError, "learning rate: -0.1", "while building optimizer: SGD", shows="built")
def the_learning_rate_is_negative(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "lr": -0.1})


@mistake(ConfigError, "optimizer.a", "params=")
def several_optimizers_do_not_say_what_is_whose(folder: Path) -> None:
    train(folder, optimizer={"a": {"type": "SGD", "lr": 0.1}, "b": {"type": "SGD", "lr": 0.1}})


@mistake(ConfigError, "optimizer.a", "params='wieght'", "did you mean 'weight'?", shows="built")
def the_part_of_an_optimizer_is_misspelt(folder: Path) -> None:
    train(
        folder,
        optimizer={
            "a": {"type": "SGD", "lr": 0.1, "params": "wieght"},
            "b": {"type": "SGD", "lr": 0.1, "params": "bias"},
        },
    )


@mistake(ConfigError, "optimizer.paramwise", "'norm_decay'", "did you mean 'norm_decay_mult'?")
def a_rule_for_norm_layers_is_misspelt(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "lr": 0.1, "paramwise": {"norm_decay": 0}})


@mistake(ConfigError, "optimizer.paramwise.rules", "'wieght'", "did you mean 'weight'?", shows="built")
def a_rule_is_for_a_name_that_no_parameter_has(folder: Path) -> None:
    rules = {"wieght": {"lr_mult": 0.1}}
    train(folder, optimizer={"type": "SGD", "lr": 0.1, "paramwise": {"rules": rules}})


@mistake(ConfigError, "optimizer.scale_lr", "not known", "batch_size=")
def the_rate_is_scaled_by_batches_that_come_ready(folder: Path) -> None:
    batches = [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))]
    scaled = {"type": "SGD", "lr": 0.1, "scale_lr": {"base_batch_size": 256}}
    train(folder, optimizer=scaled, train_dataloader=batches)


@mistake(ConfigError, "optimizer", "paramwise_cfg", "paramwise=dict(...)")
def the_rules_are_called_as_elsewhere(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "lr": 0.1, "paramwise_cfg": {"norm_decay_mult": 0.0}})


@mistake(ConfigError, "optimizer", "NoneType", "return", shows="built")
def the_function_that_makes_the_optimizer_returns_none(folder: Path) -> None:
    train(folder, optimizer=lambda parameters: None)


@mistake(TypeError, "optimizer", "function", "parameters", shows="built")
def the_function_that_makes_the_optimizer_wants_the_model(folder: Path) -> None:
    train(folder, optimizer=lambda: SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


@mistake(ConfigError, "param_scheduler", "dict(", "type")
def the_schedule_is_a_number(folder: Path) -> None:
    train(folder, param_scheduler=0.1)


@mistake(ConfigError, "param_scheduler", "ReduceLROnPlateau", "monitor=")
def the_plateau_follows_nothing(folder: Path) -> None:
    train(folder, param_scheduler={"type": "ReduceLROnPlateau"})


@mistake(ConfigError, "monitor='acuracy'", "did you mean 'accuracy'?", shows="running")
def the_plateau_follows_an_unknown_metric(folder: Path) -> None:
    train(folder, param_scheduler={"type": "ReduceLROnPlateau", "monitor": "acuracy"})


@mistake(ConfigError, "param_scheduler", "monitor='accuracy'", "val_dataloader")
def the_plateau_follows_a_validation_that_never_comes(folder: Path) -> None:
    train(
        folder,
        param_scheduler={"type": "ReduceLROnPlateau", "monitor": "accuracy"},
        val_dataloader=None,
        val_evaluator=None,
    )


@mistake(ConfigError, "by_epoch='step'", "True (move after each epoch)")
def the_schedule_moves_by_a_word(folder: Path) -> None:
    train(folder, param_scheduler={"type": "StepLR", "step_size": 1, "by_epoch": "step"})


@mistake(ConfigError, "param_scheduler", "no optimizer is called 'main'", "known: optimizer")
def the_schedule_names_an_unknown_optimizer(folder: Path) -> None:
    train(folder, param_scheduler={"type": "StepLR", "step_size": 1, "optimizer": "main"})


@mistake(ConfigError, "param_scheduler", "StepLR", "another optimizer", shows="built")
def the_schedule_is_of_another_optimizer(folder: Path) -> None:
    other = SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    train(folder, param_scheduler=StepLR(other, 1))


@mistake(MissingArgumentError, "train() needs optimizer", "dict(type=")
def the_loop_of_ours_is_given_as_a_class_and_no_optimizer(folder: Path) -> None:
    train(folder, train_cfg={"type": EpochBasedTrainLoop, "max_epochs": 1}, optimizer=None)


class OwnLoop(EpochBasedTrainLoop):
    """Might have updated in a way of its own."""


@mistake(MissingArgumentError, "train() needs optimizer", "dict(type=")
def there_is_a_schedule_and_nothing_that_it_moves(folder: Path) -> None:
    cfg, schedule = {"type": OwnLoop, "max_epochs": 1}, {"type": "StepLR", "step_size": 1}
    train(folder, train_cfg=cfg, param_scheduler=schedule, optimizer=None)


@mistake(ConfigError, "no optimizer to update with", "optimizer=", shows="running")
def a_loop_of_ones_own_has_no_optimizer(folder: Path) -> None:
    train(folder, train_cfg={"type": OwnLoop, "max_epochs": 1}, optimizer=None)


@mistake(ConfigError, "find_lr: start=0.1", "must be below end=0.001")
def rates_of_a_range_test_fall(folder: Path) -> None:
    runner(folder).find_lr(start=0.1, end=0.001)


@mistake(ConfigError, "find_lr: start=0 must be a learning rate", "above 0")
def a_range_test_begins_at_zero(folder: Path) -> None:
    runner(folder).find_lr(start=0)


@mistake(ConfigError, "find_lr: iters=5", "at least 10")
def a_range_test_is_too_short(folder: Path) -> None:
    runner(folder).find_lr(iters=5)


@mistake(ConfigError, "scale='log' is unknown", "exp")
def a_range_test_has_an_unknown_scale(folder: Path) -> None:
    runner(folder).find_lr(scale="log")  # type: ignore[arg-type]


@mistake(ConfigError, "find_lr() needs the optimizer", "optimizer=dict(")
def a_range_test_has_no_optimizer(folder: Path) -> None:
    runner(folder, optimizer=None, train_cfg={"type": OwnRun}).find_lr()


@mistake(ConfigError, "moves the rate of one optimizer", "lower, upper", "optimizer='lower'")
def a_range_test_does_not_say_which_optimizer(folder: Path) -> None:
    runner(folder, optimizer=TWO).find_lr()


@mistake(ConfigError, "optimizer='uper' is none", "did you mean 'upper'")
def a_range_test_names_no_optimizer(folder: Path) -> None:
    runner(folder, optimizer=TWO).find_lr(optimizer="uper")


@mistake(ConfigError, "run_iter(idx, data_batch)", "OwnRun", "run()")
def a_range_test_cannot_see_into_a_loop(folder: Path) -> None:
    runner(folder, train_cfg={"type": OwnRun}).find_lr()


@mistake(ConfigError, "a generator can be read only once", "the function that makes it")
def a_range_test_would_use_up_the_data(folder: Path) -> None:
    runner(folder, train_dataloader=(batch for batch in [])).find_lr()


@mistake(ConfigError, "captured step", "leave graphs=True out")
def a_range_test_is_of_captured_steps(folder: Path) -> None:
    runner(folder, compile={"graphs": True}).find_lr()
