"""How long, how often, and on what."""

from pathlib import Path

from stratrun import BaseLoop
from stratrun.errors import ConfigError, MissingArgumentError
from tests.mistakes.mistake import mistake, runner, samples, train


@mistake(ConfigError, "by_epoch=True", "max_epochs", "max_iters", "by_epoch=False")
def iterations_are_given_to_training_by_epoch(folder: Path) -> None:
    train(folder, train_cfg={"by_epoch": True, "max_iters": 10})


@mistake(ConfigError, "max_epochs", "max_iters", "one of them")
def epochs_and_iterations_are_both_given(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "max_iters": 10})


@mistake(ConfigError, "train_cfg", "how long to train", "max_epochs=...")
def nothing_says_how_long_to_train(folder: Path) -> None:
    train(folder, train_cfg={})


@mistake(ConfigError, "train_cfg", "max_epochs=0", "above 0")
def training_takes_no_epochs(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 0})


@mistake(ConfigError, "train_cfg", "max_epochs='3'", "write a number, max_epochs=3")
def the_number_of_epochs_is_a_string(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": "3"})


@mistake(ConfigError, "train_cfg=3", "dict", "max_epochs")
def the_loop_is_a_number(folder: Path) -> None:
    train(folder, train_cfg=3)


@mistake(ConfigError, "train_cfg", "accumulate=0", "above 0")
def nothing_is_accumulated(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "accumulate": 0})


@mistake(ConfigError, "train_cfg", "accumulate=[(5, 4), (0, 1)]", "rising epochs", "[(0, 1), (5, 4)]")
def the_accumulation_goes_back_in_time(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "accumulate": [(5, 4), (0, 1)]})


@mistake(ConfigError, "train_cfg", "val_interval=0", "above 0")
def validation_comes_every_zero_epochs(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "val_interval": 0})


@mistake(ConfigError, "train_cfg", "val_begin=-1")
def validation_begins_before_the_start(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "val_begin": -1})


@mistake(ConfigError, "train_cfg", "dynamic_intervals", "(10, 2)")
def the_dynamic_intervals_are_no_pairs(folder: Path) -> None:
    train(folder, train_cfg={"max_epochs": 1, "dynamic_intervals": [3, 4]})


@mistake(ConfigError, "by_epoch='yes'", "True or False")
def by_epoch_is_a_word(folder: Path) -> None:
    train(folder, train_cfg={"by_epoch": "yes", "max_epochs": 1})


@mistake(MissingArgumentError, "val_cfg", "val_dataloader=")
def validation_is_configured_without_data(folder: Path) -> None:
    train(folder, val_cfg={}, val_dataloader=None, val_evaluator=None)


@mistake(MissingArgumentError, "val_evaluator", "val_dataloader=")
def there_are_metrics_and_no_validation_data(folder: Path) -> None:
    train(folder, val_dataloader=None)


@mistake(MissingArgumentError, "val_dataloader", "val_evaluator=")
def there_is_validation_data_and_no_metric(folder: Path) -> None:
    train(folder, val_evaluator=None)


@mistake(MissingArgumentError, "train()", "train_dataloader", "dataset=")
def there_is_nothing_to_train_on(folder: Path) -> None:
    train(folder, train_dataloader=None)


@mistake(MissingArgumentError, "train()", "train_cfg", "max_epochs=10")
def there_is_no_train_cfg(folder: Path) -> None:
    train(folder, train_cfg=None)


@mistake(MissingArgumentError, "train()", "optimizer", "AdamW")
def there_is_no_optimizer(folder: Path) -> None:
    train(folder, optimizer=None)


@mistake(MissingArgumentError, "predict()", "predict_dataloader", "dataset=")
def there_is_nothing_to_predict_on(folder: Path) -> None:
    runner(folder).predict()


@mistake(MissingArgumentError, "test()", "test_dataloader", "dataset=")
def there_is_nothing_to_test_on(folder: Path) -> None:
    runner(folder).test()


@mistake(ConfigError, "val_cfg: NotALoop", "BaseLoop")
def the_loop_is_a_class_of_another_kind(folder: Path) -> None:
    class NotALoop:
        def __init__(self, runner: object, dataloader: object, evaluator: object) -> None: ...

    train(folder, val_cfg={"type": NotALoop})


@mistake(ConfigError, "val_cfg: TwoSets", "'dataloader2'", "beside 'type'")
def a_loop_of_the_users_lacks_its_argument(folder: Path) -> None:
    class TwoSets(BaseLoop):
        def __init__(
            self, runner: object, dataloader: object, evaluator: object, dataloader2: object
        ) -> None:
            raise AssertionError

        def run(self) -> None: ...

    train(folder, val_cfg={"type": TwoSets})


@mistake(ConfigError, "val_cfg: TwoSets", "run", "method")
def a_loop_of_the_users_has_no_run(folder: Path) -> None:
    class TwoSets(BaseLoop):
        pass

    train(folder, val_cfg={"type": TwoSets})


@mistake(ConfigError, "val_evaluator", "'a', 'b'", "'b', 'c'", "each")
def the_names_of_evaluators_and_loaders_differ(folder: Path) -> None:
    data = {"dataset": samples(), "batch_size": 4}
    train(
        folder,
        val_dataloader={"b": data, "c": data},
        val_evaluator={"a": {"type": "Accuracy"}, "b": {"type": "Accuracy"}},
    )
