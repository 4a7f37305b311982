"""What the hook takes, and what it says to what it does not take."""

import inspect
import re

import pytest

from stratrun.errors import ConfigError
from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.hooks.ranking import rules_of
from stratrun.registry import HOOKS


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("accuracy", "greater"),
        ("accuracy_top5", "greater"),
        ("val/F1", "greater"),
        ("bbox_mAP_50", "greater"),
        ("MulticlassAccuracy", "greater"),
        ("r2", "greater"),
        ("loss", "less"),
        ("val_loss", "less"),
        ("MeanSquaredError", "less"),
        ("rmse", "less"),
        ("perplexity", "less"),
    ],
)
def test_the_rule_is_told_from_the_name(name, rule):
    assert rules_of(name) == rules_of([name]) == rules_of({name: None}) == {name: rule}


@pytest.mark.parametrize("name", ["foo", "lossless", "accuracy_loss", ""])
def test_a_name_that_tells_no_rule_is_refused(name):
    with pytest.raises(ConfigError, match=rf"write save_best={{'{name}': 'greater'}} or 'less'"):
        CheckpointHook(save_best=name)


@pytest.mark.parametrize(
    ("given", "rule"), [("greater", "greater"), ("less", "less"), ("max", "greater"), ("min", "less")]
)
def test_what_is_written_beside_a_metric_counts_whatever_its_name_tells(given, rule):
    assert rules_of({"accuracy": given, "loss": None}) == {"accuracy": rule, "loss": "less"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0 must be a whole number, at least 1; interval=None"),
        ({"keep_last": 0}, "keep_last=0 must be a whole number, at least 1; keep_last=None"),
        ({"keep_best": 0}, "keep_best=0 must be a whole number, at least 1"),
        (
            {"save_best": {"loss": "lesser"}},
            "save_best={'loss': 'lesser'}: 'lesser' is no rule; did you mean 'less'?",
        ),
        ({"save_best": {"loss": 3}}, "3 is no rule; known: greater, less, max, min"),
        ({"save_best": True}, "save_best=True must be the name of a metric, several, or a mapping such as"),
        ({"save_on": "exeption"}, "save_on='exeption' is no event to save on; did you mean 'exception'?"),
        ({"save_on": ["end", "last"]}, "save_on='last' is no event .*; known: end, exception, stop"),
        ({"save_on": True}, "save_on=True must be one or several of end, stop, exception; or None"),
        ({"keep_every": 0}, "keep_every=0 must be a whole number, at least 1; keep_every=None"),
        ({"minutes": 0}, "minutes=0 must be a number above 0; minutes=None"),
        ({"minutes": float("nan")}, "minutes=nan must be a number above 0"),
        ({"minutes": True}, "minutes=True must be a number above 0"),
    ],
)
def test_wrong_options_are_refused_with_the_mend(options, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointHook(**options)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("minute", r"did you mean 'minutes'\?"),
        ("save_last", "use save_on="),
        ("on_exception", r"use save_on=\('end', 'stop', 'exception'\)"),
        ("rule", "use save_best={'name': 'greater'} or 'less'"),
        ("max_keep_ckpts", "use keep_last="),
        ("save_top_k", "use keep_best="),
        ("monitor", "use save_best="),
        ("every_n_epochs", "use interval="),
    ],
)
def test_an_argument_of_another_name_is_told_its_name_here(argument, hint):
    with pytest.raises(ConfigError, match=rf"CheckpointHook takes no argument '{argument}'; {hint}"):
        HOOKS.check({"type": "CheckpointHook", argument: 3})


def test_what_is_told_about_other_names_can_be_written():
    arguments = {re.match("[a-z_]+=", hint)[0][:-1] for hint in CheckpointHook.foreign_arguments.values()}
    assert arguments <= inspect.signature(CheckpointHook).parameters.keys()
    assert not CheckpointHook.foreign_arguments.keys() & inspect.signature(CheckpointHook).parameters.keys()
