"""Mistakes in the descriptions of data sets that are made of others."""

from typing import Any

import pytest

from stratrun.errors import ConfigError, DataError, UnknownNameError
from tests.feeds import Numbers, Stream, make_feed
from tests.unit.test_data_views import Labelled

MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "name": (
        {"type": "RepeatDataset", "dataset": {"type": "ConcatDatset", "datasets": []}, "times": 1},
        UnknownNameError,
        r"data\.dataset\.dataset='ConcatDatset'.*did you mean 'ConcatDataset'",
    ),
    "name in a list": (
        {"type": "ConcatDataset", "datasets": [DATA := Numbers(3), {"type": "Subsett", "dataset": DATA}]},
        UnknownNameError,
        r"data\.dataset\.datasets\.1='Subsett'.*did you mean 'Subset'",
    ),
    "argument": (
        {"type": "Subset", "dataset": {"type": Numbers, "sample": 3}, "fraction": 0.5},
        ConfigError,
        r"data\.dataset\.dataset: Numbers takes no argument 'sample'; did you mean 'samples'",
    ),
    "foreign": (
        {"type": "ClassBalancedDataset", "dataset": DATA, "oversample_thr": 0.1},
        ConfigError,
        "takes no argument 'oversample_thr'; use threshold",
    ),
    "stream": (
        {"type": "RepeatDataset", "dataset": Stream(3), "times": 2},
        ConfigError,
        "Stream is an IterableDataset, whose samples have no index",
    ),
    "times": ({"type": "RepeatDataset", "dataset": DATA, "times": 0}, ConfigError, "times=0 must be a whole"),
    "no choice": ({"type": "Subset", "dataset": DATA}, ConfigError, "nothing says which samples to take"),
    "two choices": (
        {"type": "Subset", "dataset": DATA, "indices": [1], "fraction": 0.5},
        ConfigError,
        "indices and fraction both choose samples; give one of",
    ),
    "index": (
        {"type": "Subset", "dataset": DATA, "indices": [3]},
        ConfigError,
        "indices has 3, and there are 3",
    ),
    "fraction": (
        {"type": "Subset", "dataset": DATA, "fraction": 2},
        ConfigError,
        "fraction=2 must be a number",
    ),
    "none left": ({"type": "Subset", "dataset": DATA, "indices": []}, DataError, "Subset is empty"),
    "no data sets": ({"type": "ConcatDataset", "datasets": []}, ConfigError, "must be a list of data sets"),
    "labels": (
        {"type": "ClassBalancedDataset", "dataset": DATA, "threshold": 0.5},
        ConfigError,
        "Numbers has no attribute 'targets' or 'labels', and its samples are not read",
    ),
    "name of labels": (
        {"type": "ClassBalancedDataset", "dataset": Labelled(), "threshold": 0.5, "labels": "target"},
        ConfigError,
        "Labelled has no attribute 'target'; did you mean 'targets'",
    ),
    "number of labels": (
        {"type": "ClassBalancedDataset", "dataset": DATA, "threshold": 0.5, "labels": [1]},
        DataError,
        "there are 1 labels for the 3 samples",
    ),
    "threshold": (
        {"type": "ClassBalancedDataset", "dataset": DATA, "threshold": 3},
        ConfigError,
        "threshold=3 must be a part of the samples",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_mend(mistake: str) -> None:
    spec, kind, text = MISTAKES[mistake]
    with pytest.raises(kind, match=text):
        make_feed({"dataset": spec}, name="data")
