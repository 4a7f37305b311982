from functools import partial

import pytest
import torch

from stratrun.config import Config
from stratrun.errors import ConfigError
from stratrun.registry import (
    COLLATES,
    DATASETS,
    OPTIMIZERS,
    Registry,
)


class Thing:
    built = 0

    def __init__(self, size, depth=1, *, name="thing"):
        Thing.built += 1
        self.size, self.depth, self.name = size, depth, name


@pytest.fixture
def things():
    """A registry of its own with one class."""
    registry = Registry("things")
    registry.register_module()(Thing)
    return registry


def explode(*args, **kwargs):
    raise AssertionError("built too early")


class Annotated:
    def __init__(
        self, by_epoch: bool = True, ratio: "float | None" = None, name: str = "", length: int | str = 1
    ):
        pass


# ---- registering


def test_a_class_is_registered_under_its_own_name_one_name_or_several():
    registry = Registry("things")
    assert registry.register_module()(Thing) is Thing
    registry.register_module("one")(Thing)
    registry.register_module(name=["two", "three"])(Thing)
    assert registry.entries() == dict.fromkeys(["Thing", "one", "two", "three"], Thing)
    assert registry.names() == ["Thing", "one", "three", "two"]
    assert registry.get("two") is Thing


def test_a_taken_name_is_refused_unless_forced(things):
    class Other:
        pass

    with pytest.raises(ConfigError, match=r"things entry 'Thing' is already .*Thing; .* force=True"):
        things.register_module("Thing")(Other)
    assert things.get("Thing") is Thing
    things.register_module("Thing", force=True)(Other)
    assert things.get("Thing") is Other


def test_code_that_runs_twice_replaces_its_own_class(things):
    again = type("Thing", (), {"__module__": Thing.__module__, "__qualname__": "Thing"})
    things.register_module()(again)
    assert things.get("Thing") is again
    main = type("Thing", (), {"__module__": "__main__", "__qualname__": "Thing"})
    things.register_module()(main)
    assert things.get("Thing") is main


def test_two_local_classes_of_one_name_are_not_the_same_class():
    registry = Registry("things")

    def make():
        class Local:
            pass

        return Local

    registry.register_module()(make())
    with pytest.raises(ConfigError, match="is already"):
        registry.register_module()(make())


def test_a_decorator_without_parentheses_says_what_to_write(things):
    with pytest.raises(
        ConfigError, match=r"write @THINGS.register_module\(\) with parentheses above 'Thing'"
    ):
        things.register_module(Thing)


# ---- building


def test_a_name_a_class_and_a_dict_build_and_an_object_passes_through(things):
    ready = Thing(1)
    assert things.build({"type": "Thing", "size": 3}).size == 3
    assert things.build({"type": Thing, "size": 3}).size == 3
    assert things.build("Thing", size=2).size == 2
    assert things.build(Thing, size=2).size == 2
    assert things.build(ready) is ready
    assert things.build(None) is None
    assert things.build(explode) is explode


def test_building_leaves_the_spec_as_it_was(things):
    spec = {"type": "Thing", "size": 3}
    things.build(spec)
    assert spec == {"type": "Thing", "size": 3}


def test_what_is_offered_goes_only_where_it_is_taken_and_not_set(things):
    made = things.build({"type": "Thing", "size": 3}, offer={"depth": 5, "size": 7, "unknown": 1})
    assert (made.size, made.depth) == (3, 5)
    assert things.check({"type": "Thing", "depth": 2}, offer=["size", "depth", "unknown"])[1] == {"depth": 2}


def test_a_registered_function_is_called():
    registry = Registry("models")

    @registry.register_module()
    def small(width):
        return torch.nn.Linear(width, 1)

    assert registry.build({"type": "small", "width": 4}).in_features == 4


def test_a_collate_function_is_kept_with_its_options_bound():
    registry = Registry("collates", keep_functions=True)

    @registry.register_module()
    def pad(batch, value=0):
        return [*batch, value]

    @registry.register_module()
    class Pad:
        def __init__(self, value):
            self.value = value

    made = registry.build({"type": "pad", "value": 7})
    assert isinstance(made, partial) and made([1]) == [1, 7]
    assert registry.build("pad")([1]) == [1, 0]
    assert registry.build({"type": "Pad", "value": 3}).value == 3
    assert COLLATES.build(pad) is pad


def test_an_error_of_the_class_itself_says_what_was_being_built(tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer:\n  lr: -1\n  type: SGD\n")
    config = Config.load(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="Invalid learning rate") as caught:
        OPTIMIZERS.build(config.optimizer, where="optimizer", params=[torch.zeros(1)])
    assert caught.value.__notes__ == [f"while building optimizer: SGD ({tmp_path}/c.yaml:3)"]


# ---- refusing before anything is built


class NoArguments:
    pass


class Open:
    def __init__(self, needed, **more):
        self.more = more


class Positional:
    def __init__(self, first, /, *rest):
        pass


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": Thing, "size": 1, "dept": 2}, "x: Thing takes no argument 'dept'; did you mean 'depth'?"),
        ({"type": Thing, "size": 1, "q": 2}, "x: Thing takes no argument 'q'; known: depth, name, size"),
        ({"type": NoArguments, "q": 2}, "x: NoArguments takes no argument 'q'; none are known"),
        ({"type": Positional, "rest": 2}, "x: Positional takes no argument 'rest'; none are known"),
        ({"type": Thing}, "x: Thing needs 'size'; add it beside 'type'"),
        ({"type": Open, "other": 1}, "x: Open needs 'needed'; add it beside 'type'"),
        (
            Thing,
            "x: Thing is a class that needs 'size'; give an object of it, Thing(...), or "
            "dict(type=Thing, size=...)",
        ),
        ("Thing", "x: Thing needs 'size'; add it beside 'type'"),
        ({"type": "Linear"}, "x: Linear needs 'in_features', 'out_features'; add them beside 'type'"),
        ({"type": "Thin", "size": 1}, "x='Thin': no things entry named 'Thin'; did you mean 'Thing'?"),
        (
            {"type": Annotated, "by_epoch": "no"},
            "x: Annotated: by_epoch='no' is a string; write true or false, in Python True or False",
        ),
        (
            {"type": Annotated, "ratio": "1e-3"},
            "x: Annotated: ratio='1e-3' is a string; write a number, ratio=1e-3",
        ),
        ({"type": 3}, "x: 'type' must be a name or a class, got 3"),
        ({}, "x names no class; add 'type'"),
        ({"lr": "canary", "q": 1}, "x names no class; add 'type' beside 'lr', 'q'"),
        ({"_target_": "a.B", "q": 1}, "x names no class; it has '_target_', did you mean 'type'?"),
        ({"class_path": "a.B"}, "x names no class; it has 'class_path', did you mean 'type'?"),
    ],
)
@pytest.mark.parametrize("method", ["check", "build"])
def test_a_wrong_spec_is_refused_and_nothing_is_built(spec, message, method):
    registry = Registry("things", fallbacks=("torch.nn",))
    registry.register_module()(Thing)
    before = Thing.built
    with pytest.raises(ConfigError) as caught:
        getattr(registry, method)(spec, where="x")
    assert str(caught.value) == message
    assert Thing.built == before


def test_text_is_left_to_a_class_that_may_mean_it():
    registry = Registry("things")
    for options in ({"ratio": "auto"}, {"by_epoch": "auto"}, {"name": "3"}, {"length": "3"}):
        registry.check({"type": Annotated, **options})


def test_a_class_that_takes_any_argument_takes_it():
    registry = Registry("things")
    assert registry.build({"type": Open, "needed": 1, "any": 2}).more == {"any": 2}


def test_a_class_whose_arguments_cannot_be_told_is_left_to_itself():
    assert Registry("things").check({"type": type("X", (), {"__signature__": "none"}), "q": 1})[1] == {"q": 1}


def test_an_argument_that_the_run_fills_in_is_refused_but_an_offered_one_may_be_set(things):
    with pytest.raises(ConfigError, match="x: Thing gets 'size' from the run; leave it out"):
        things.check({"type": "Thing", "size": 3}, where="x", given=["size"])
    assert things.check({"type": "Thing", "size": 3}, offer=["size"])[1] == {"size": 3}
    with pytest.raises(ConfigError) as caught:
        things.check({"type": "Thing", "siz": 3}, where="x", given=["size"])
    assert str(caught.value) == "x: Thing takes no argument 'siz'; known: depth, name"


def test_the_kind_stands_for_a_where_that_is_not_given(things):
    with pytest.raises(ConfigError, match=r"^things: Thing takes no argument 'q'"):
        things.check({"type": "Thing", "size": 1, "q": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  type: SGD\n  lrr: 1\n", "optimizer: SGD takes no argument 'lrr'; did you mean 'lr'? (c.yaml:3)"),
        ("  lr: 1\n  type: sgd\n", "did you mean 'SGD'? (c.yaml:3)"),
        ("  lr: 1\n  type: [1]\n", "'type' must be a name or a class, got [1] (c.yaml:3)"),
        ("  lr: 1\n", "optimizer names no class; add 'type' beside 'lr' (c.yaml:2)"),
        ("  type: SGD\n  params: 1\n", "optimizer: SGD gets 'params' from the run; leave it out (c.yaml:3)"),
    ],
)
def test_what_a_config_got_wrong_is_told_with_file_and_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"optimizer:\n{text}")
    with pytest.raises(ConfigError) as caught:
        OPTIMIZERS.check(Config.load("c.yaml").optimizer, where="optimizer", given=["params"])
    assert str(caught.value).endswith(message)


def test_a_lacking_argument_and_a_nested_spec_are_told_with_their_own_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("loader:\n  dataset:\n    type: Subset\n    indice: [1]\n")
    loader = Config.load("c.yaml").loader
    with pytest.raises(ConfigError) as caught:
        DATASETS.check(loader.dataset, where="loader.dataset")
    assert str(caught.value).endswith("did you mean 'indices'? (c.yaml:4)")
    del loader.dataset.indice
    with pytest.raises(ConfigError, match=r"needs 'dataset'; add it beside 'type' \(c.yaml:3\)"):
        DATASETS.check(loader.dataset)


def test_an_override_is_named_as_the_place(tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer: {type: SGD}\n")
    config = Config.load(tmp_path / "c.yaml", ["optimizer.lrr=1"])
    with pytest.raises(ConfigError, match=r"did you mean 'lr'\? \(override 'optimizer.lrr=1'\)$"):
        OPTIMIZERS.check(config.optimizer, given=["params"])


def test_an_argument_left_over_from_another_type_brings_the_mend(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("optimizer: {type: SGD, momentum: 0.9}\n")
    (tmp_path / "c.yaml").write_text("_base_: base.yaml\noptimizer: {type: AdamW}\n")
    with pytest.raises(ConfigError) as caught:
        OPTIMIZERS.check(Config.load("c.yaml").optimizer, given=["params"])
    mend = (
        "if it is left over from another 'type', put '_delete_: true' beside 'type' (c.yaml:2) (base.yaml:1)"
    )
    assert str(caught.value).endswith(mend)


def test_a_wrong_argument_of_ones_own_brings_no_talk_of_leftovers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("optimizer: {type: SGD}\n")
    (tmp_path / "one_file.yaml").write_text("optimizer: {type: SGD, qqq: 0.9}\n")
    (tmp_path / "typo.yaml").write_text("_base_: base.yaml\noptimizer: {lrr: 1}\n")
    overridden = Config.load("base.yaml", ["optimizer.zzz=1"])
    for config in (Config.load("one_file.yaml"), Config.load("typo.yaml"), overridden):
        with pytest.raises(ConfigError) as caught:
            OPTIMIZERS.check(config.optimizer, given=["params"])
        assert "left over" not in str(caught.value)
