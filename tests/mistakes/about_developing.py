"""Less than a whole run: `dev_cfg`."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.data import IterableDataset

from stratrun.errors import ConfigError
from tests.mistakes.mistake import mistake, samples, train


class Endless(IterableDataset[tuple[Tensor, ...]]):
    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(samples())


@mistake(ConfigError, "dev_cfg has no setting 'fast_dev_rum'", "'fast_dev_run'")
def a_setting_is_misspelt(folder: Path) -> None:
    train(folder, dev_cfg={"fast_dev_rum": True})


@mistake(ConfigError, "dev_cfg='fast_dev_run'", "dict", "limit_batches")
def the_settings_of_developing_are_a_word(folder: Path) -> None:
    train(folder, dev_cfg="fast_dev_run")


@mistake(ConfigError, "no argument 'fast_dev_run'", "dev_cfg=dict(fast_dev_run=True)")
def a_trial_run_is_asked_for_as_elsewhere(folder: Path) -> None:
    train(folder, fast_dev_run=True)


@mistake(ConfigError, "no argument 'limit_train_batches'", "limit_batches=dict(train=...)")
def training_is_limited_as_elsewhere(folder: Path) -> None:
    train(folder, limit_train_batches=10)


@mistake(ConfigError, "fast_dev_run=0.5", "True", "above 0")
def a_trial_run_is_of_half_a_batch(folder: Path) -> None:
    train(folder, dev_cfg={"fast_dev_run": 0.5})


@mistake(ConfigError, "limit_batches", "val=1.5", "up to 1.0")
def more_than_all_batches_are_asked_for(folder: Path) -> None:
    train(folder, dev_cfg={"limit_batches": {"val": 1.5}})


@mistake(ConfigError, "limit_batches", "0.0", "above 0.0")
def a_limit_leaves_nothing(folder: Path) -> None:
    train(folder, dev_cfg={"limit_batches": 0.0})


@mistake(ConfigError, "limit_batches", "True", "whole number")
def a_limit_is_a_flag(folder: Path) -> None:
    train(folder, dev_cfg={"limit_batches": True})


@mistake(ConfigError, "limit_batches", "no job 'vall'", "'val'")
def a_limit_is_of_no_job(folder: Path) -> None:
    train(folder, dev_cfg={"limit_batches": {"vall": 2}})


@mistake(ConfigError, "overfit_batches=0.1", "whole number of batches")
def overfitting_is_to_a_share(folder: Path) -> None:
    train(folder, dev_cfg={"overfit_batches": 0.1})


@mistake(ConfigError, "fast_dev_run=1", "overfit_batches=3", "leave one of them out")
def a_trial_run_is_to_overfit(folder: Path) -> None:
    train(folder, dev_cfg={"fast_dev_run": True, "overfit_batches": 3})


@mistake(ConfigError, "fast_dev_run=2", "limit_batches=5", "leave one of them out")
def a_trial_run_is_limited_too(folder: Path) -> None:
    train(folder, dev_cfg={"fast_dev_run": 2, "limit_batches": 5})


@mistake(ConfigError, "overfit_batches=3", "limit_batches=5", "dict(val=3)")
def overfitting_is_limited_too(folder: Path) -> None:
    train(folder, dev_cfg={"overfit_batches": 3, "limit_batches": 5})


@mistake(ConfigError, "fast_dev_run=1", "resume=True", "resume='auto'")
def a_trial_run_is_to_go_on(folder: Path) -> None:
    train(folder, dev_cfg={"fast_dev_run": True}, resume=True)


@mistake(ConfigError, "train=0.5", "train_dataloader", "no length", "train=100")
def a_share_of_a_stream_is_asked_for(folder: Path) -> None:
    data = {"dataset": Endless(), "batch_size": 4}
    train(folder, train_dataloader=data, dev_cfg={"limit_batches": {"train": 0.5}})


@mistake(ConfigError, "sanity_batches=2", "val_dataloader")
def a_validation_is_tried_that_is_not_there(folder: Path) -> None:
    train(folder, val_dataloader=None, val_evaluator=None, dev_cfg={"sanity_batches": 2})


@mistake(ConfigError, "sanity_batches=0", "above 0")
def a_validation_of_no_batch_is_tried(folder: Path) -> None:
    train(folder, dev_cfg={"sanity_batches": 0})


@mistake(ConfigError, "detect_anomaly='yes'", "True or False")
def anomalies_are_detected_by_a_word(folder: Path) -> None:
    train(folder, dev_cfg={"detect_anomaly": "yes"})


@mistake(ConfigError, "detect_anomaly=True", "compile=dict(step=True)", "leave step out")
def operations_are_looked_at_in_a_compiled_step(folder: Path) -> None:
    train(folder, compile={"step": True}, dev_cfg={"detect_anomaly": True})
