"""Words that are misspelt, or are those of another framework."""

from pathlib import Path

from torch import nn

from stratrun import Runner
from stratrun.errors import ConfigError, UnknownNameError
from stratrun.registry import HOOKS
from tests.mistakes.mistake import mistake, train


@mistake(UnknownNameError, "accelerator='cdua'", "did you mean 'cuda'?")
def the_device_is_misspelt(folder: Path) -> None:
    train(folder, accelerator="cdua")


@mistake(UnknownNameError, "accelerator='gpu'", "'cuda'")
def the_device_is_called_as_in_lightning(folder: Path) -> None:
    train(folder, accelerator="gpu")


@mistake(UnknownNameError, "accelerator='cuda:1'", "'cuda'", "CUDA_VISIBLE_DEVICES")
def the_device_has_a_number(folder: Path) -> None:
    train(folder, accelerator="cuda:1")


@mistake(UnknownNameError, "strategy='dpp'", "did you mean 'ddp'?")
def the_strategy_is_misspelt(folder: Path) -> None:
    train(folder, strategy="dpp")


@mistake(ConfigError, "strategy=", "Linear", "single")
def the_strategy_is_no_strategy(folder: Path) -> None:
    train(folder, strategy=nn.Linear(1, 1))


@mistake(UnknownNameError, "precision='fp17'", "did you mean 'fp16'?")
def the_precision_is_misspelt(folder: Path) -> None:
    train(folder, precision="fp17")


@mistake(UnknownNameError, "optimizer='Adamm'", "did you mean 'Adam'?")
def the_optimizer_is_misspelt(folder: Path) -> None:
    train(folder, optimizer={"type": "Adamm", "lr": 0.1})


@mistake(ConfigError, "optimizer: SGD", "'learning_rate'", "lr")
def an_argument_of_the_optimizer_is_misspelt(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "learning_rate": 0.1})


@mistake(ConfigError, "optimizer: SGD", "'weight_dekay'", "did you mean 'weight_decay'?")
def an_option_of_the_optimizer_is_misspelt(folder: Path) -> None:
    train(folder, optimizer={"type": "SGD", "lr": 0.1, "weight_dekay": 0.1})


@mistake(ConfigError, "optimizer names no class", "'name'", "did you mean 'type'?")
def the_optimizer_has_name_in_place_of_type(folder: Path) -> None:
    train(folder, optimizer={"name": "SGD", "lr": 0.1})


@mistake(ConfigError, "Runner", "'train_dataloder'", "did you mean 'train_dataloader'?")
def an_argument_of_the_runner_is_misspelt(folder: Path) -> None:
    Runner(nn.Linear(4, 3), train_dataloder=[])  # type: ignore[call-arg]


@mistake(ConfigError, "Runner", "'max_epochs'", "train_cfg")
def an_argument_of_the_loop_is_given_to_the_runner(folder: Path) -> None:
    Runner(nn.Linear(4, 3), max_epochs=3)  # type: ignore[call-arg]


@mistake(ConfigError, "Runner", "'callbacks'", "custom_hooks")
def an_argument_is_called_as_in_lightning(folder: Path) -> None:
    Runner(nn.Linear(4, 3), callbacks=[])  # type: ignore[call-arg]


@mistake(ConfigError, "train_cfg", "'max_epoch'", "did you mean 'max_epochs'?")
def an_argument_of_the_loop_is_misspelt(folder: Path) -> None:
    train(folder, train_cfg={"by_epoch": True, "max_epoch": 3})


@mistake(UnknownNameError, "train_cfg='EpochBasedTrainLop'", "did you mean 'EpochBasedTrainLoop'?")
def the_loop_is_misspelt(folder: Path) -> None:
    train(folder, train_cfg={"type": "EpochBasedTrainLop", "max_epochs": 3})


@mistake(ConfigError, "env_cfg", "'cudnn_benchmrk'", "did you mean 'cudnn_benchmark'?")
def a_setting_of_env_cfg_is_misspelt(folder: Path) -> None:
    train(folder, env_cfg={"cudnn_benchmrk": True})


@mistake(ConfigError, "env_cfg", "backend='glo'", "did you mean 'gloo'?")
def the_backend_is_misspelt(folder: Path) -> None:
    train(folder, env_cfg={"backend": "glo"})


@mistake(ConfigError, "env_cfg", "cudnn_benchmark='yes'", "True or False")
def a_setting_of_env_cfg_is_a_word(folder: Path) -> None:
    train(folder, env_cfg={"cudnn_benchmark": "yes"})


@mistake(ConfigError, "randomness", "'sed'", "did you mean 'seed'?")
def a_setting_of_randomness_is_misspelt(folder: Path) -> None:
    train(folder, randomness={"sed": 1})


@mistake(ConfigError, "randomness", "seed='1'", "whole number")
def the_seed_is_a_string(folder: Path) -> None:
    train(folder, randomness={"seed": "1"})


@mistake(ConfigError, "num_threads=1.5", "whole number")
def half_a_thread_is_asked_for(folder: Path) -> None:
    train(folder, env_cfg={"num_threads": 1.5})


@mistake(ConfigError, "timeout=nan", "number of seconds")
def the_timeout_is_no_number(folder: Path) -> None:
    train(folder, env_cfg={"timeout": float("nan")})


@mistake(ConfigError, "seed=1180591620717411303424", "64 bits")
def the_seed_is_too_large(folder: Path) -> None:
    train(folder, randomness={"seed": 2**70})


@mistake(ConfigError, "max_norm=nan", "above 0")
def the_limit_of_gradients_is_no_number(folder: Path) -> None:
    train(folder, clip_grad={"max_norm": float("nan")})


@mistake(ConfigError, "randomness=7", "seed")
def the_seed_is_given_as_randomness(folder: Path) -> None:
    train(folder, randomness=7)


@mistake(ConfigError, "clip_grad", "'max_nrom'", "did you mean 'max_norm'?")
def a_setting_of_clip_grad_is_misspelt(folder: Path) -> None:
    train(folder, clip_grad={"max_nrom": 1.0})


@mistake(ConfigError, "clip_grad: max_norm=-1", "above 0")
def the_gradients_are_clipped_to_less_than_nothing(folder: Path) -> None:
    train(folder, clip_grad=-1)


@mistake(UnknownNameError, "loss='cross_entrpy'", "did you mean 'cross_entropy'?")
def the_loss_is_misspelt(folder: Path) -> None:
    train(folder, loss="cross_entrpy")


@mistake(UnknownNameError, "loggers", "'tensorbord'", "did you mean 'tensorboard'?")
def a_logger_is_misspelt(folder: Path) -> None:
    train(folder, loggers=["tensorbord"])


@mistake(UnknownNameError, "loggers", "'csv_logger'", "csv")
def a_logger_is_unknown(folder: Path) -> None:
    train(folder, loggers=["csv_logger"])


@mistake(ConfigError, "hooks entry 'LoggerHook' is already", "another name", "force=True")
def a_name_is_registered_twice(folder: Path) -> None:
    @HOOKS.register_module()
    class LoggerHook:
        pass


@mistake(ConfigError, "register_module()", "parentheses", "'Mine'")
def the_registration_lacks_its_parentheses(folder: Path) -> None:
    @HOOKS.register_module  # type: ignore[arg-type]
    class Mine:
        pass


@mistake(ConfigError, "param_scheduler", "StepLR", "'step_size'")
def the_schedule_lacks_a_required_argument(folder: Path) -> None:
    train(folder, param_scheduler={"type": "StepLR"})


@mistake(UnknownNameError, "param_scheduler='CosinAnnealingLR'", "did you mean 'CosineAnnealingLR'?")
def the_schedule_is_misspelt(folder: Path) -> None:
    train(folder, param_scheduler={"type": "CosinAnnealingLR", "T_max": 3})


@mistake(UnknownNameError, "model='LeNet'", "torch.nn")
def the_model_is_an_unknown_name(folder: Path) -> None:
    train(folder, model={"type": "LeNet"})
