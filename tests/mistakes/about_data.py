"""What batches are read from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stratrun.errors import ConfigError, DataError, ModelError, UnknownNameError
from tests.mistakes.mistake import mistake, runner, samples, train


class Rows:
    """A data set that a config names."""

    def __init__(self, path: str, split: str = "train") -> None:
        raise AssertionError("built")


class Unsized:
    """A data set whose author forgot its length."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(4)


@mistake(ConfigError, "train_dataloader", "'batchsize'", "did you mean 'batch_size'?")
def an_argument_of_the_loader_is_misspelt(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "batchsize": 4})


@mistake(ConfigError, "val_dataloader", "'num_worker'", "did you mean 'num_workers'?")
def an_argument_of_the_validation_loader_is_misspelt(folder: Path) -> None:
    train(folder, val_dataloader={"dataset": samples(), "num_worker": 2})


@mistake(UnknownNameError, "train_dataloader.dataset='TensorDatset'", "did you mean 'TensorDataset'?")
def the_data_set_is_misspelt(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": {"type": "TensorDatset"}, "batch_size": 4})


@mistake(ConfigError, "train_dataloader.dataset: Rows", "'splt'", "did you mean 'split'?")
def an_argument_of_the_data_set_is_misspelt(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": {"type": Rows, "path": "x", "splt": "val"}})


@mistake(ConfigError, "val_dataloader.dataset: Rows", "'path'", "beside 'type'")
def the_data_set_lacks_an_argument(folder: Path) -> None:
    train(folder, val_dataloader={"dataset": {"type": Rows}})


@mistake(ConfigError, "train_dataloader", "no 'dataset'", "add one")
def the_loader_has_no_data_set(folder: Path) -> None:
    train(folder, train_dataloader={"batch_size": 4})


@mistake(ConfigError, "train_dataloader", "Rows", "class", "object")
def the_data_set_is_a_class(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": Rows})


@mistake(UnknownNameError, "train_dataloader.dataset='/data/train'", "torch.utils.data")
def the_data_set_is_a_path(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": "/data/train"})


@mistake(ConfigError, "train_dataloader", "DataLoader is a class", "object")
def the_loader_is_a_class(folder: Path) -> None:
    train(folder, train_dataloader=DataLoader)


@mistake(ConfigError, "train_dataloader: 'dataset' is a DataLoader", "itself")
def the_data_set_is_a_loader(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": DataLoader(samples())})


@mistake(ConfigError, "train_dataloader", "Linear is a model", "DataLoader")
def the_loader_is_a_model(folder: Path) -> None:
    train(folder, train_dataloader=nn.Linear(4, 3))


@mistake(ConfigError, "train_dataloader", "'mnist' is a string", "DataLoader")
def the_loader_is_a_string(folder: Path) -> None:
    train(folder, train_dataloader="mnist")


@mistake(ConfigError, "train_dataloader", "tensor", "TensorDataset")
def the_loader_is_a_tensor(folder: Path) -> None:
    train(folder, train_dataloader=torch.zeros(16, 4))


@mistake(ConfigError, "train_dataloader", "tuple of tensors", "TensorDataset")
def the_loader_is_inputs_and_targets(folder: Path) -> None:
    train(folder, train_dataloader=(torch.zeros(16, 4), torch.zeros(16)))


@mistake(ConfigError, "train_dataloader=7", "DataLoader")
def the_loader_is_a_number(folder: Path) -> None:
    train(folder, train_dataloader=7)


@mistake(ConfigError, "train_dataloader: batch_size=0", "1 or more")
def batches_have_no_samples(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "batch_size": 0})


@mistake(ConfigError, "train_dataloader: batch_size='4'", "whole number")
def the_batch_size_is_a_string(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "batch_size": "4"})


@mistake(ConfigError, "train_dataloader: shuffle='no'", "True or False")
def shuffle_is_a_word(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "shuffle": "no"})


@mistake(ConfigError, "global_batch_size", "batch_size", "one of them")
def both_batch_sizes_are_given(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "batch_size": 4, "global_batch_size": 8})


@mistake(ConfigError, "train_dataloader", "sampler", "shuffle=True", "leave one of them out")
def a_sampler_and_shuffle_are_both_given(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "sampler": range(16), "shuffle": True})


@mistake(UnknownNameError, "train_dataloader.sampler='RandomSampel'", "did you mean 'RandomSampler'?")
def the_sampler_is_misspelt(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "sampler": {"type": "RandomSampel"}})


@mistake(UnknownNameError, "train_dataloader.collate_fn='pad'", "collates")
def the_collate_function_is_an_unknown_name(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "collate_fn": "pad"})


@mistake(ConfigError, "train_dataloader", "generator=", "randomness=dict(seed=...)")
def the_loader_is_given_a_generator(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "generator": torch.Generator()})


@mistake(DataError, "train_dataloader", "TensorDataset is empty", "check the path")
def the_data_set_is_empty(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(0), "batch_size": 4})


@mistake(DataError, "val_dataloader", "TensorDataset is empty", "check the path")
def the_validation_data_set_is_empty(folder: Path) -> None:
    train(folder, val_dataloader={"dataset": samples(0), "batch_size": 4})


@mistake(
    DataError,
    "train_dataloader",
    "drop_last=True leaves no batch",
    "16 samples",
    "lower batch_size",
    shows="built",
)
def every_batch_is_dropped(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": samples(), "batch_size": 32, "drop_last": True})


@mistake(DataError, "train_dataloader", "Unsized has no length", "__len__")
def the_data_set_has_no_length(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": Unsized()})


@mistake(DataError, "train_dataloader", "int is no data set", "__getitem__")
def the_data_set_is_a_number(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": 7})


def batches() -> Iterator[Any]:
    yield torch.zeros(4, 4), torch.zeros(4, dtype=torch.long)


@mistake(
    DataError, "train_dataloader", "generator", "read only once", "function that makes it", shows="running"
)
def a_generator_is_used_up_after_an_epoch(folder: Path) -> None:
    train(folder, train_dataloader=batches(), train_cfg={"max_epochs": 2})


@mistake(DataError, "train_dataloader is an empty list", "at least one batch")
def the_batches_are_an_empty_list(folder: Path) -> None:
    train(folder, train_dataloader=[])


@mistake(ModelError, "inputs, targets", "Tensor(4, 4)", "collate_fn", shows="running")
def the_batch_has_no_targets(folder: Path) -> None:
    train(folder, train_dataloader={"dataset": [torch.zeros(4)] * 8, "batch_size": 4})


@mistake(ModelError, "'image'", "'label'", "inputs", "targets", shows="running")
def the_batch_has_other_keys(folder: Path) -> None:
    row = {"image": torch.zeros(4), "label": 1}
    train(folder, train_dataloader={"dataset": [row] * 8, "batch_size": 4})


@mistake(ModelError, "pair", "(inputs, targets)", "Tensor(4, 4)", shows="running")
def the_batch_has_three_parts(folder: Path) -> None:
    three = TensorDataset(torch.zeros(8, 4), torch.zeros(8), torch.zeros(8))
    train(folder, train_dataloader={"dataset": three, "batch_size": 4})


@mistake(
    ModelError, "(inputs, targets)", "val_dataloader gives [Tensor(4, 4)]", "val_step(batch)", shows="running"
)
def the_validation_data_has_no_targets(folder: Path) -> None:
    runner(folder, val_dataloader={"dataset": TensorDataset(torch.zeros(8, 4)), "batch_size": 4}).val()
