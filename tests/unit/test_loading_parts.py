"""What `load_from` may say, how names are made to fit, and what is told of those that do not."""

from typing import Any

import pytest
import torch
from torch import nn

from stratrun.checkpoint.mapping import Fit, Renaming, complaint, fit
from stratrun.checkpoint.moments import fit_optimizer, with_options
from stratrun.checkpoint.parts import LoadFrom, LoadReport
from stratrun.checkpoint.weights import averaged
from stratrun.errors import CheckpointError, ConfigError
from stratrun.strategies import logical
from tests.problems import perceptron

A, B = torch.zeros(2), torch.zeros(3)


# What is written -------------------------------------------------------------------------------------------


def test_a_path_alone_asks_for_all_weights_and_for_nothing_else() -> None:
    wanted = LoadFrom.parse("runs/x")
    assert (wanted.path, wanted.parts, wanted.strict, wanted.skip) == ("runs/x", ("model",), True, False)
    assert LoadFrom.parse({"path": "runs/x"}).parts == ("model",)


def test_parts_come_in_the_order_in_which_they_are_loaded_however_they_are_written() -> None:
    assert LoadFrom.parse({"path": "x", "parts": ["rng", "optimizer", "model"]}).parts == (
        "model",
        "optimizer",
        "rng",
    )


@pytest.mark.parametrize(
    ("given", "skips"),
    [
        ({}, False),
        ({"strict": False}, True),
        ({"mismatch": "skip"}, True),
        ({"strict": False, "mismatch": "error"}, False),
    ],
)
def test_other_shapes_are_an_error_unless_the_user_is_lenient(given: dict[str, Any], skips: bool) -> None:
    assert LoadFrom.parse({"path": "x", **given}).skip is skips


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, ["int is no path"]),
        ("", ["'' is no path"]),
        ({}, ["path=None is no path"]),
        ({"pth": "x"}, ["takes no 'pth'", "did you mean 'path'?"]),
        ({"parts": []}, ["parts=[]", "model, optimizer"]),
        ({"parts": "model"}, ["parts='model' must be a list"]),
        ({"parts": ["optimiser"]}, ["'optimiser'", "did you mean 'optimizer'?"]),
        ({"parts": ["weights of all"]}, ["'weights of all'", "known: model, optimizer"]),
        ({"parts": ["model", "model"]}, ["'model' twice"]),
        ({"parts": ["model", "scheduler"]}, ["'scheduler' without 'optimizer'", "add it"]),
        ({"parts": ["data"]}, ["'data' without 'counters'"]),
        ({"weights": "averages"}, ["weights='averages' must be 'model' or 'ema'"]),
        ({"weights": "ema", "parts": ["hooks"]}, ["weights='ema'", "'model' is not in parts"]),
        ({"strict": "no"}, ["strict='no' must be True or False"]),
        ({"strict": 1}, ["strict=1 must be"]),
        ({"mismatch": "ignore"}, ["mismatch='ignore' must be 'error' or 'skip'"]),
        ({"storage_options": "anon"}, ["storage_options must be a dict"]),
        ({"rename": "a"}, ["rename='a' must be a dict"]),
        ({"rename": {"(": "x"}}, ["'(' is no regular expression"]),
        ({"rename": {"a": r"\1"}}, [r"'\\1' cannot take the place of 'a'", "invalid group reference"]),
        ({"rename": {"a": r"\g<b>"}}, ["cannot take the place of 'a'"]),
        ({"rename": {"a": 1}}, ["must be a dict of a regular expression"]),
        ({"rename": {"a": "b"}, "parts": ["hooks"]}, ["neither 'model' nor 'optimizer'"]),
        ({"path": "x.safetensors", "parts": ["model", "optimizer"]}, ["has no 'optimizer'", "a checkpoint"]),
        ({"path": "X.PT", "weights": "ema"}, ["file of weights", "weights='ema' out"]),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_what_would(given: Any, words: list[str]) -> None:
    spec = {"path": "x", **given} if given and isinstance(given, dict) and "pth" not in given else given
    with pytest.raises(ConfigError) as caught:
        LoadFrom.parse(spec)
    assert [word for word in ["load_from", *words] if word not in str(caught.value)] == []


def test_neither_credentials_in_the_url_nor_options_are_shown() -> None:
    wanted = LoadFrom.parse(
        {"path": "https://me:hunter2@host/x?sig=hunter3", "storage_options": {"secret": "hunter4"}}
    )
    assert "hunter" not in str(wanted) + repr(LoadFrom("x", options={"secret": "hunter4"}))


# Names -----------------------------------------------------------------------------------------------------


def test_rules_are_applied_in_order_and_none_or_nothing_drops_a_name() -> None:
    rules = {r"^backbone\.(.*)": r"encoder.\1", "encoder.fc": "head", "^ema_": None, "_old$": ""}
    assert Renaming.parse(rules).apply(["backbone.conv", "backbone.fc", "ema_x", "y_old", "kept"]) == {
        "backbone.conv": "encoder.conv",
        "backbone.fc": "head",
        "ema_x": None,
        "y_old": None,
        "kept": "kept",
    }
    assert Renaming.parse([["a", "b"], ["b", "c"]]).apply(["a"]) == {"a": "c"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"^body": "x"}, ["'^body' matches none of the 2 names", "'a.weight'"]),
        ({"weight|bias": "w"}, ["makes 'a.w' of both 'a.weight' and 'a.bias'"]),
        ({"weight": "bias"}, ["makes 'a.bias' of both"]),
        ({r"^a\.": ""}, ["drops every name", "take off a prefix"]),
    ],
    ids=str,
)
def test_a_renaming_that_cannot_be_meant_is_refused(rules: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Renaming.parse(rules).apply(["a.weight", "a.bias"])
    assert [word for word in words if word not in str(caught.value)] == []


def test_each_name_ends_in_just_one_place() -> None:
    own = {"same": A.clone(), "new": A.clone(), "shape": B, "lacking": A.clone()}
    stored = {"same": A, "old": A, "shape": A, "strange": A, "junk": A}
    found, values = fit(stored, own, Renaming.parse({"old": "new", "junk": None}))
    assert found == Fit(
        loaded=["same", "new"],
        missing=["lacking"],
        unexpected=["strange"],
        skipped={"shape": ((2,), (3,))},
        renamed={"old": "new"},
        dropped=["junk"],
    )
    assert values == {"same": A, "new": A}
    assert not found.whole


def test_a_tied_weight_is_not_missing_when_the_other_name_of_it_is_there() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    found, _ = fit({"a.weight": torch.ones(2, 2)}, model.state_dict(), Renaming())
    assert found.whole
    assert found.loaded == ["a.weight", "b.weight"]


def test_a_lazy_parameter_takes_any_shape() -> None:
    found, values = fit({"weight": B, "bias": A}, nn.LazyLinear(2).state_dict(), Renaming())
    assert found.whole
    assert values["weight"] is B


def test_only_the_strict_complain_of_names_and_only_who_skips_not_of_shapes() -> None:
    names = Fit(missing=["layer.weight"], unexpected=["layr.weight"])
    assert complaint(names, strict=False, skip=False) is None
    told = str(complaint(names, strict=True, skip=True))
    assert "it lacks 'layer.weight' (is it 'layr.weight'?)" in told
    assert "it has 'layr.weight', which the model has not" in told
    assert "strict=False" in told
    shapes = Fit(skipped={"w": ((2,), (3,))})
    assert complaint(shapes, strict=True, skip=True) is None
    assert "'w' has the shape (2,), and (3,) in the model; mismatch='skip'" in str(
        complaint(shapes, strict=False, skip=False)
    )


@pytest.mark.parametrize(
    ("missing", "unexpected", "rename"),
    [
        (["a.w", "a.b"], ["module.a.w", "module.a.b"], r"rename={r'^module\.(.*)': r'\1'}"),
        (["net.a.w", "net.b"], ["a.w", "b"], r"rename={r'^(.*)': r'net.\1'}"),
    ],
)
def test_where_only_a_prefix_differs_the_renaming_is_told_and_works(
    missing: list[str], unexpected: list[str], rename: str
) -> None:
    told = str(complaint(Fit(missing=missing, unexpected=unexpected), strict=True, skip=False))
    assert f"{rename} may be meant" in told
    rules = eval(rename.partition("=")[2])
    assert list(Renaming.parse(rules).apply(unexpected).values()) == missing


def test_of_thousands_of_names_a_few_are_told_and_the_rest_counted() -> None:
    many = [f"layer{i}.weight" for i in range(5000)]
    told = str(complaint(Fit(missing=many, unexpected=["other"]), strict=True, skip=False))
    assert "and 4995 more" in told
    assert len(told) < 600


# The report ---------------------------------------------------------------------------------


def test_the_report_is_one_line_when_all_fits_and_names_what_does_not() -> None:
    whole = LoadReport("x", ("model",), {"model": Fit(loaded=["a", "b"], renamed={"c": "a"})}, ["rng"])
    assert str(whole) == "loaded from x: model: 2 loaded, 1 renamed; rng"
    found = Fit(loaded=["a"], missing=["m"], unexpected=["u"], skipped={"s": ((2,), (3,))})
    assert str(LoadReport("x", ("model",), {"model": found})).splitlines() == [
        "loaded from x: model: 1 loaded, 1 missing, 1 unexpected, 1 skipped",
        "  model: missing: 'm'",
        "  model: unexpected: 'u'",
        "  model: skipped, of another shape: 's' (2,), here (3,)",
    ]


# Averages ---------------------------------------------------------------------------------


def test_averages_take_the_place_of_the_weights_also_where_the_loss_has_weights_too() -> None:
    hooks = {"EMAHook": {"averages": {"w": B}, "updates": 1}}
    other = A.clone()
    assert averaged({"w": A, "buffer": other}, hooks, "it") == {"w": B, "buffer": other}
    assert averaged({"model.w": A, "loss.w": other}, hooks, "it") == {"model.w": B, "loss.w": other}


def test_averages_of_weights_that_are_called_as_those_beside_them_go_where_all_of_them_fit() -> None:
    weights = {"model.w": A, "model.model.w": A.clone(), "loss.w": A.clone()}
    hooks = {"EMAHook": {"averages": {"w": B, "model.w": B + 1}}}
    found = averaged(weights, hooks, "it")
    assert found == {"model.w": B, "model.model.w": hooks["EMAHook"]["averages"]["model.w"]} | {
        "loss.w": weights["loss.w"]
    }


def test_an_average_under_one_name_of_tied_weights_is_that_of_the_others_too() -> None:
    assert averaged({"tied": A, "w": A}, {"EMAHook": {"averages": {"w": B}}}, "it") == {"tied": B, "w": B}


@pytest.mark.parametrize(
    ("hooks", "word"),
    [
        ({}, "it has no moving averages: no hook of its run has state"),
        ({"EMAHook": {"averages": {}}}, "no moving averages yet"),
        ({"EMAHook": 3}, "no moving averages yet"),
        ({"EMAHook": {}, "EMAHook#2": {}}, "several moving averages, of EMAHook, EMAHook#2"),
        ({"EMAHook": {"averages": {"other": A, "w": A}}}, "averages 'other'"),
    ],
    ids=str,
)
def test_averages_that_are_not_there_or_of_other_weights_are_refused(hooks: Any, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        averaged({"w": A}, hooks, "it")


# Optimizers ---------------------------------------------------------------------------------


def stepped(model: nn.Module, **options: Any) -> dict[str, Any]:
    """State of an Adam that has made one update."""
    optimizer = torch.optim.Adam(model.parameters(), **options)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return logical.optimizer_state(optimizer, logical.parameter_names(model))


def fresh(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    return logical.optimizer_state(optimizer, logical.parameter_names(model))


def test_moments_follow_the_new_names_of_their_parameters() -> None:
    stored, own = stepped(nn.Sequential(perceptron()), lr=0.25), fresh(perceptron())
    renamed = Renaming.parse({r"^0\.(.*)": r"\1"}).apply(stored["state"])
    found, merged = fit_optimizer(own, stored, renamed, Fit())
    assert found.whole
    assert merged["state"]["2.bias"] is stored["state"]["0.2.bias"]
    assert merged["param_groups"][0]["lr"] == 0.5
    whole, done = with_options(merged, stored, renamed, strict=True)
    assert done
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert whole["param_groups"] == [{**stored["param_groups"][0], "params": names}]


def test_moments_of_a_weight_of_another_shape_stay_fresh() -> None:
    stored, own = stepped(perceptron()), fresh(perceptron())
    model = Fit(skipped={"2.weight": ((3, 8), (4, 8))})
    found, merged = fit_optimizer(own, stored, {}, model)
    assert found.skipped == model.skipped
    assert sorted(merged["state"]) == ["0.bias", "0.weight", "2.bias"]


def test_groups_that_are_cut_differently_keep_their_options_or_are_refused() -> None:
    model = perceptron()
    stored, mine = stepped(model), list(model.parameters())
    halves: list[dict[str, Any]] = [{"params": mine[:2]}, {"params": mine[2:], "lr": 0.5}]
    optimizer = torch.optim.Adam(halves, lr=0.125)
    own = logical.optimizer_state(optimizer, logical.parameter_names(model))
    found, merged = fit_optimizer(own, stored, {}, Fit())
    assert found.whole
    with pytest.raises(CheckpointError, match=r"cut differently \(of \[4\] and \[2, 2\] here\)"):
        with_options(merged, stored, {}, strict=True)
    taken, done = with_options(merged, stored, {}, strict=False)
    assert not done
    assert [group["lr"] for group in taken["param_groups"]] == [0.125, 0.5]
