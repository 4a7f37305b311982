"""Groups of parameters by name, kind and depth, against groups that are written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratrun.errors import ConfigError
from stratrun.hooks.logging import learning_rates
from stratrun.loggers import Logger, Record
from stratrun.optim import optimizer as optimizers
from tests.problems import perceptron, points, trained

WIDTH = 4
BASE: dict[str, Any] = {"type": "AdamW", "lr": 0.5, "weight_decay": 0.25}


class OwnNorm2d(nn.Module):
    """A norm layer by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))


class NormalHead(nn.Linear):
    """None, whatever its name begins with."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.embed = nn.Embedding(5, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.between = nn.Linear(WIDTH, WIDTH)
        self.more = nn.ModuleList(Block() for _ in range(2))
        self.norm = OwnNorm2d()
        self.head = NormalHead(WIDTH, 5)


def built(model: nn.Module, paramwise: Any, **options: Any) -> torch.optim.Optimizer:
    (made,) = optimizers.build({**BASE, "paramwise": paramwise, **options}, model).values()
    return made


def options_of(model: nn.Module, paramwise: Any, *options: str, **given: Any) -> dict[str, tuple[Any, ...]]:
    """Name of the group, and its options, by name of the parameter; each parameter once."""
    names = {p: name for name, p in model.named_parameters()}
    found: dict[str, tuple[Any, ...]] = {}
    for group in built(model, paramwise, **given).param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (group["name"], *(group[one] for one in options or ("lr",)))
    assert found.keys() == set(names.values())
    return found


def test_each_parameter_is_of_the_kinds_that_its_layer_and_its_name_say() -> None:
    def decayed(kind: str) -> set[str]:
        found = options_of(Model(), {f"{kind}_decay_mult": 0.0}, "weight_decay")
        assert {value for _, value in found.values()} <= {0.0, 0.25}
        return {name for name, (_, value) in found.items() if value == 0.0}

    parts = [f"{part}.{number}" for part in ("blocks", "more") for number in (0, 1)]
    biases = {
        f"{part}.{name}.{bias}"
        for part in parts
        for name, bias in (
            ("norm", "bias"),
            ("attention", "in_proj_bias"),
            ("attention.out_proj", "bias"),
            ("conv", "bias"),
        )
    } | {"between.bias", "head.bias"}
    norms = {f"{part}.norm.{name}" for part in parts for name in ("weight", "bias")}
    assert decayed("norm") == norms | {"norm.scale"}
    assert decayed("embedding") == {"embed.weight"}
    assert decayed("dwconv") == {f"{part}.conv.{name}" for part in parts for name in ("weight", "bias")}
    assert decayed("bias") == biases
    assert decayed("flat") == biases | norms


def test_of_several_kinds_the_first_that_something_is_said_of_counts_for_each_option() -> None:
    rules = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.5, "bias_lr_mult": 2.0}
    found = options_of(Model(), rules, "lr", "weight_decay")
    assert found["blocks.0.norm.weight"] == ("norm", 0.5, 0.0)
    assert found["blocks.0.norm.bias"] == ("norm_bias", 1.0, 0.0)
    assert found["between.bias"] == ("bias", 1.0, 0.125)
    assert found["between.weight"] == ("default", 0.5, 0.25)


def test_kinds_that_come_to_the_same_are_one_group() -> None:
    rules = {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0, "embedding_decay_mult": 0.0, "dwconv_lr_mult": 1}
    made = built(Model(), rules)
    assert [group["name"] for group in made.param_groups] == ["default", "norm_embedding_bias"]


def test_the_first_rule_that_fits_a_name_counts_and_says_more_than_a_kind() -> None:
    rules = {
        "bias_decay_mult": 0.0,
        "norm_lr_mult": 4.0,
        "rules": {
            "blocks.*.norm": {"lr_mult": 0.5},
            "blocks": {"lr": 0.125, "decay_mult": 2.0, "betas": (0.5, 0.75)},
            "**.bias": {"weight_decay": 0.375, "name": "biases"},
        },
    }
    found = options_of(Model(), rules, "lr", "weight_decay", "betas")
    usual = (0.9, 0.999)
    assert found["blocks.1.norm.weight"] == ("blocks.norm", 0.25, 0.25, usual)
    assert found["blocks.1.norm.bias"] == ("blocks.norm/bias", 0.25, 0.0, usual)
    assert found["blocks.1.conv.bias"] == ("blocks", 0.125, 0.5, (0.5, 0.75))
    assert found["more.1.conv.bias"] == ("biases", 0.5, 0.375, usual)
    assert found["more.1.norm.bias"] == ("biases/norm", 2.0, 0.375, usual)
    assert found["more.1.attention.in_proj_bias"] == ("bias", 0.5, 0.0, usual)


def test_layer_decay_counts_blocks_through_all_lists_and_gives_the_last_layers_the_whole_rate() -> None:
    found = options_of(Model(), {"layer_decay": 0.5, "norm_decay_mult": 0.0, "rules": {"head": {"lr": 3.0}}})
    expected = {
        "token": ("layer_0", 0.5 / 32),
        "embed.weight": ("layer_0", 0.5 / 32),
        "blocks.0.conv.weight": ("layer_1", 0.5 / 16),
        "blocks.0.norm.weight": ("layer_1/norm", 0.5 / 16),
        "blocks.1.conv.weight": ("layer_2", 0.5 / 8),
        "between.weight": ("layer_2", 0.5 / 8),
        "more.0.conv.weight": ("layer_3", 0.5 / 4),
        "more.1.conv.weight": ("layer_4", 0.5 / 2),
        "norm.scale": ("layer_5/norm", 0.5),
        "head.weight": ("head", 3.0),
    }
    assert {name: found[name] for name in expected} == expected
    named = options_of(Model(), {"layer_decay": {"decay": 0.5, "blocks": "blocks.*"}})
    assert named["blocks.1.conv.weight"] == ("layer_2", 0.25)
    assert named["between.weight"] == named["more.0.conv.weight"] == ("layer_3", 0.5)


def test_a_shared_parameter_is_taken_once_under_any_of_its_names() -> None:
    model = Model()
    model.head.weight = model.embed.weight
    found = options_of(model, {"rules": {"head.weight": {"lr_mult": 2.0}}})
    assert found["embed.weight"] == ("head.weight", 1.0)
    assert found["head.bias"] == ("default", 0.5)


def test_each_of_several_optimizers_has_groups_of_its_own_part() -> None:
    model = Model()
    made = optimizers.build(
        {
            "body": {**BASE, "params": ["blocks", "more"], "paramwise": {"layer_decay": 0.5}},
            "rest": {"type": "SGD", "lr": 1.0, "params": "head", "paramwise": {"bias_lr_mult": 2.0}},
        },
        model,
    )
    assert [(g["name"], g["lr"]) for g in made["body"].param_groups] == [
        ("layer_1", 0.5 / 16),
        ("layer_2", 0.5 / 8),
        ("layer_3", 0.5 / 4),
        ("layer_4", 0.5 / 2),
    ]
    assert [(g["name"], g["lr"]) for g in made["rest"].param_groups] == [("default", 1.0), ("bias", 2.0)]


def test_groups_of_which_one_has_options_that_the_kernel_does_not_take_are_not_fused() -> None:
    sgd: dict[str, Any] = {"type": "SGD", "lr": 0.1, "momentum": 0.9}
    for dampening, expected in ((0.0, True), (0.1, False)):
        spec = {**sgd, "paramwise": {"rules": {"0": {"dampening": dampening}}}}
        (made,) = optimizers.build(spec, perceptron()).values()
        assert [bool(group.get("fused")) for group in made.param_groups] == [expected, expected]


MISTAKES: list[tuple[Any, str]] = [
    ([], r"paramwise=\[\] must be a dict"),
    ({"norm_decay": 0}, "paramwise takes no 'norm_decay'; did you mean 'norm_decay_mult'"),
    ({"norm_decay_mult": "0"}, "norm_decay_mult='0' must be a number, 0 or more"),
    ({"bias_lr_mult": -1}, "bias_lr_mult=-1 must be a number, 0 or more"),
    ({"rules": [("head", {})]}, "must be a dict of name patterns"),
    ({"rules": {"head": 0.1}}, "'head': 0.1 must be a dict"),
    ({"rules": {"head": {"lr_mul": 2}}}, "'head' takes no 'lr_mul'; did you mean 'lr_mult'"),
    ({"rules": {"head": {"lr": 1, "lr_mult": 2}}}, "lr=1 and lr_mult=2 both say what lr is"),
    ({"rules": {"head": {"weight_decay": 1, "decay_mult": 2}}}, "both say what weight_decay is"),
    ({"rules": {"head": {"fused": True}}}, "fused says how updates are computed; give it for the whole"),
    ({"rules": {"head": {"name": 3}}}, "name=3 must be a string"),
    (
        {"rules": {"head": {"name": "x"}, "norm": {"name": "x", "lr_mult": 2}}},
        "'head' and 'norm' are both called 'x', and say different things",
    ),
    ({"layer_decay": 1.5}, "layer_decay=1.5 must be a number above 0 and at most 1"),
    ({"layer_decay": {"decay": 0.5, "block": "x"}}, "takes no 'block'; did you mean 'blocks'"),
    ({"layer_decay": {"decay": 0.5, "blocks": {"min": 1}}}, "blocks=.*'min' is not known"),
]


@pytest.mark.parametrize(("paramwise", "text"), MISTAKES, ids=[text for _, text in MISTAKES])
def test_what_makes_no_sense_is_refused_before_anything_is_built(paramwise: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        optimizers.check({**BASE, "paramwise": paramwise})


def test_words_of_others_and_factors_of_what_an_optimizer_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"paramwise_cfg is not known here; use paramwise=dict\("):
        optimizers.check({**BASE, "paramwise_cfg": {}})
    with pytest.raises(ConfigError, match="Rprop has no weight_decay to multiply"):
        optimizers.check({"type": "Rprop", "paramwise": {"norm_decay_mult": 0.0}})
    with pytest.raises(ConfigError, match="'0' takes no 'momentum'"):
        optimizers.check({"type": "Adam", "paramwise": {"rules": {"0": {"momentum": 0.5}}}})


UNFIT: list[tuple[Any, str]] = [
    ({"rules": {"heat": {"lr_mult": 2}}}, "'heat' fits no parameter; did you mean 'head'"),
    ({"rules": {"block.*": {"lr_mult": 2}}}, r"'block.\*' fits no parameter; did you mean 'block"),
    ({"rules": {"q7": {}}}, "fits no parameter; known: between, blocks, embed, head, more, norm, token"),
    ({"rules": {"blocks": {"lr_mult": 2}, "blocks.0": {}}}, "'blocks.0' is of no use, as 'blocks' before it"),
    ({"layer_decay": {"decay": 0.5, "blocks": "layers.*"}}, r"blocks='layers.\*' is no part of Model"),
]


@pytest.mark.parametrize(("paramwise", "text"), UNFIT, ids=[text for _, text in UNFIT])
def test_rules_that_do_not_fit_the_model_are_refused(paramwise: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        built(Model(), paramwise)
    with pytest.raises(ConfigError, match="layer_decay: no parts of Sequential repeat"):
        built(perceptron(), {"layer_decay": 0.5})


def test_values_of_a_rule_are_looked_at_as_those_of_the_whole_optimizer_are() -> None:
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 1\.5") as caught:
        built(Model(), {"rules": {"head": {"betas": (1.5, 0.9)}}})
    assert "optimizer.paramwise (head)" in caught.value.__notes__[0]


@pytest.mark.parametrize("part", [0, [], ["head", 1]])
def test_parts_that_are_no_names_are_refused(part: Any) -> None:
    with pytest.raises(ConfigError, match="must be the name of a submodule or a parameter"):
        optimizers.check({"a": {**BASE, "params": part}, "b": {**BASE, "params": "embed"}})


def test_parameters_of_two_optimizers_are_told() -> None:
    spec = {"a": {**BASE, "params": ["embed", "head"]}, "b": {**BASE, "params": ["head", "norm"]}}
    lines = optimizers.told(optimizers.build(spec, Model()), spec)
    assert "optimizer.a and optimizer.b: both update the same 2 parameters, by params= of each" in lines


class Open(torch.optim.SGD):
    """Takes anything, and has groups without weight decay."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, lr=options["lr"])
        del self.defaults["weight_decay"]
        for group in self.param_groups:
            group.pop("weight_decay", None)


def test_what_a_class_that_takes_anything_has_not_shows_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match="Open has no weight_decay to multiply"):
        optimizers.build({"type": Open, "lr": 1.0, "paramwise": {"bias_decay_mult": 0.5}}, perceptron())
    with pytest.raises(
        ConfigError, match="momentun is no option of a group of Open; did you mean 'momentum'"
    ):
        optimizers.build(
            {"type": Open, "lr": 1.0, "paramwise": {"rules": {"0": {"momentun": 0.5}}}}, perceptron()
        )


class Rates(Logger):
    """Keeps learning rates."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def log(self, record: Record) -> None:
        rates = {key: value for key, value in record.values.items() if key.partition("/")[0] == "lr"}
        if rates:
            self.seen.append(rates)


PARAMWISE: dict[str, Any] = {
    "bias_decay_mult": 0.0,
    "bias_lr_mult": 2.0,
    "rules": {"2": {"lr_mult": 0.5, "betas": (0.8, 0.9), "name": "head"}},
}


def plain(epochs: int) -> nn.Module:
    """The groups of `PARAMWISE` written out."""
    model: Any = perceptron()
    inputs, targets = points(12).tensors
    groups = [
        {"params": [model[0].weight]},
        {"params": [model[0].bias], "lr": 0.1, "weight_decay": 0.0},
        {"params": [model[2].weight], "lr": 0.025, "betas": (0.8, 0.9)},
        {"params": [model[2].bias], "lr": 0.025, "betas": (0.8, 0.9), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for _ in range(epochs):
        for first in range(0, 12, 4):
            F.cross_entropy(model(inputs[first : first + 4]), targets[first : first + 4]).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return model


def test_a_run_comes_to_the_weights_of_groups_written_out_and_logs_each_rate_by_name(tmp_path: Path) -> None:
    logger = Rates()
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(12), "batch_size": 4, "shuffle": False},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "AdamW", "lr": 0.05, "weight_decay": 0.1, "paramwise": PARAMWISE},
        param_scheduler={"type": "StepLR", "step_size": 1, "gamma": 0.5},
        default_hooks={"checkpoint": None, "logger": {"interval": 2}},
        loggers=[logger],
        work_dir=tmp_path,
    )
    torch.testing.assert_close(list(runner.model.parameters()), list(plain(2).parameters()))
    assert (
        "optimizer: 4 groups of parameters, lr 0.025 to 0.1: default, bias, head, head/bias" in runner.reasons
    )
    rates = {"lr/default": 0.05, "lr/bias": 0.1, "lr/head": 0.025, "lr/head/bias": 0.025}
    assert logger.seen[0] == rates
    assert logger.seen[-1] == {name: rate / 2 for name, rate in rates.items()}


def test_a_single_group_is_logged_as_lr() -> None:
    (made,) = optimizers.build({**BASE, "paramwise": {"embedding_decay_mult": 0.0}}, perceptron()).values()
    assert learning_rates({"optimizer": made}) == {"lr": 0.5}
