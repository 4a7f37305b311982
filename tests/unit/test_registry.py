import importlib
import subprocess
import sys
from functools import partial
from importlib.metadata import entry_points

import pytest
import torch

from stratrun.config import Config
from stratrun.errors import ConfigError, MissingDependencyError, UnknownNameError
from stratrun.registry import (
    COLLATES,
    DATASETS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
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


# ---- finding


@pytest.mark.parametrize(
    ("registry", "name", "path"),
    [
        (OPTIMIZERS, "AdamW", "torch.optim.AdamW"),
        (PARAM_SCHEDULERS, "CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"),
        (MODELS, "Linear", "torch.nn.Linear"),
        (DATASETS, "TensorDataset", "torch.utils.data.TensorDataset"),
        (METRICS, "MeanMetric", None),
        (METRICS, "MeanSquaredError", "torchmetrics.MeanSquaredError"),
        (METRICS, "MulticlassAccuracy", "torchmetrics.classification.MulticlassAccuracy"),
    ],
)
def test_classes_of_torch_and_torchmetrics_are_found_by_name(registry, name, path):
    found = registry.get(name)
    assert name in registry.names()
    if path is not None:
        module, _, attribute = path.rpartition(".")
        assert found is getattr(importlib.import_module(module), attribute)


def test_what_a_module_only_imports_is_not_offered():
    for name in ("Counter", "Tensor", "partial", "Optimizer", "_LRScheduler", "warnings"):
        with pytest.raises(UnknownNameError):
            PARAM_SCHEDULERS.get(name)
        assert name not in PARAM_SCHEDULERS.names()


def test_a_registered_class_wins_over_a_fallback():
    registry = Registry("optimizers", fallbacks=("torch.optim",))
    registry.register_module("SGD")(Thing)
    assert registry.get("SGD") is Thing


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (OPTIMIZERS, "adamw", "no optimizers entry named 'adamw'; did you mean 'AdamW'?"),
        (OPTIMIZERS, "AdmaW", "did you mean 'AdamW'?"),
        (METRICS, "MulticlasAccuracy", "did you mean 'MulticlassAccuracy'?"),
        (Registry("things"), "x", "no things entry named 'x'; none are known"),
        (Registry("models", fallbacks=("torch.nn",)), "qqq", "named 'qqq'; known: the classes of torch.nn"),
    ],
)
def test_an_unknown_name_brings_the_nearest_or_what_there_is(registry, name, message):
    with pytest.raises(UnknownNameError) as caught:
        registry.get(name)
    assert str(caught.value).endswith(message)


def test_a_long_list_of_fallback_classes_is_not_poured_out():
    registry = Registry("models", fallbacks=("torch.nn",))
    registry.register_module("Net")(Thing)
    with pytest.raises(UnknownNameError) as caught:
        registry.get("qqq")
    assert str(caught.value) == "no models entry named 'qqq'; known: Net, and the classes of torch.nn"


def test_a_fallback_that_is_not_installed_is_named_only_when_it_could_help():
    registry = Registry("metrics", fallbacks=("no_such_package", "no_such_package.sub"), extra="metrics")
    registry.register_module("Thing")(Thing)
    assert registry.get("Thing") is Thing
    with pytest.raises(UnknownNameError) as caught:
        registry.get("qqq")
    assert str(caught.value).endswith(
        "known: Thing, and the classes of no_such_package, which is not installed: "
        "pip install 'stratrun[metrics]'"
    )


def test_a_broken_fallback_is_not_taken_for_a_missing_one(site):
    site("broken_fallback.py", "import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        Registry("things", fallbacks=("broken_fallback",)).get("x")


def test_importing_the_registries_does_not_import_torch():
    code = "import sys; from stratrun.registry import MODELS as m; m.register_module('x')(dict); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == 0


# ---- built-ins, imported late


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Write modules into a folder on the import path; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def late(site):
    """A registry whose built-in package registers `Builtin` when it is imported."""
    site("late_things/__init__.py", "from late_things.one import Builtin\n")
    site(
        "late_things/one.py",
        "import test_late_registry as t\n@t.REGISTRY.register_module()\nclass Builtin:\n    pass\n",
    )
    site(
        "test_late_registry.py",
        "from stratrun.registry import Registry\nREGISTRY = Registry('things', 'late_things')\n",
    )
    return importlib.import_module("test_late_registry").REGISTRY


def test_builtins_are_imported_when_a_name_is_asked_for_and_not_before(late):
    late.register_module("mine")(Thing)
    assert late.get("mine") is Thing
    assert "late_things" not in sys.modules
    assert late.get("Builtin").__module__ == "late_things.one"


def test_names_and_entries_include_builtins(late):
    assert late.names() == ["Builtin"]
    assert list(late.entries()) == ["Builtin"]


def test_a_builtin_that_was_replaced_by_force_stays_replaced_when_it_is_imported(late):
    late.register_module("Builtin", force=True)(Thing)
    assert late.names() == ["Builtin"]
    assert late.get("Builtin") is Thing


def test_a_builtin_name_taken_by_accident_is_refused(late):
    late.register_module("Builtin")(Thing)
    with pytest.raises(ConfigError, match="'Builtin' is already"):
        late.names()


# ---- entry points


@pytest.fixture
def plugin(site):
    """A distribution with one entry point, as an installer leaves it: metadata and a module."""

    def make(kind, name, value, dist="strange-plugin", module="", extra=""):
        site(
            f"{dist.replace('-', '_')}-1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n"
            + (f"Provides-Extra: {extra}\n" if extra else ""),
        )
        site(
            f"{dist.replace('-', '_')}-1.0.dist-info/entry_points.txt",
            f"[stratrun.{kind}]\n{name} = {value}\n",
        )
        if module:
            site(f"{value.partition(':')[0]}.py", module)
        importlib.invalidate_caches()

    return make


def test_an_entry_point_is_found_and_only_the_named_one_is_imported(plugin):
    plugin("things", "strange", "strange_thing:Strange", module="class Strange:\n    pass\n")
    plugin("things", "bomb", "bomb_thing:Bomb", dist="bomb-plugin", module="raise RuntimeError\n")
    registry = Registry("things")
    assert registry.names() == ["bomb", "strange"]
    assert "strange_thing" not in sys.modules
    assert registry.get("strange").__module__ == "strange_thing"
    assert type(registry.build("strange")) is registry.get("strange")
    assert registry.entries() == {}


def test_entry_points_are_not_looked_at_for_a_name_that_is_built_in(plugin, things, monkeypatch):
    plugin("things", "Thing", "bomb_thing:Bomb", module="raise RuntimeError\n")
    monkeypatch.setattr("stratrun.registry.plugins.entry_points", explode)
    assert things.get("Thing") is Thing


def test_a_near_miss_of_an_entry_point_is_named(plugin):
    plugin("things", "strange", "strange_thing:Strange")
    with pytest.raises(UnknownNameError, match="did you mean 'strange'"):
        Registry("things").get("stange")


def test_a_missing_package_of_our_own_plugin_brings_the_command(plugin):
    plugin("things", "wandb", "own_thing:W", "stratrun", module="import no_such_module.sub\n", extra="wandb")
    with pytest.raises(MissingDependencyError) as caught:
        Registry("things").check({"type": "wandb"}, where="logger")
    assert str(caught.value) == (
        "logger='wandb': things entry 'wandb' needs the package 'no_such_module', which is not installed; "
        "pip install 'stratrun[wandb]'"
    )
    assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)


def test_a_missing_package_of_a_strangers_plugin_names_the_stranger(plugin):
    plugin("things", "x", "strange_thing:X", module="import no_such_module\n", extra="x")
    with pytest.raises(
        MissingDependencyError, match=r"'no_such_module'.*; strange-plugin asks for it"
    ) as caught:
        Registry("things").get("x")
    assert "pip" not in str(caught.value)


def test_a_plugin_that_is_not_where_it_says_is_named(plugin):
    plugin("things", "x", "strange_thing:Missing", module="")
    plugin("things", "y", "other_thing:Missing", dist="other-plugin", module="x = 1\n")
    with pytest.raises(MissingDependencyError, match="needs the package 'strange_thing'"):
        Registry("things").get("x")
    with pytest.raises(
        MissingDependencyError, match="'y' of other-plugin cannot be imported from 'other_thing:M"
    ):
        Registry("things").get("y")


def test_two_packages_that_claim_one_name_are_refused(plugin):
    plugin("things", "x", "one_thing:X", dist="one-plugin")
    plugin("things", "x", "two_thing:X", dist="two-plugin")
    assert len(entry_points(group="stratrun.things", name="x")) == 2
    with pytest.raises(ConfigError, match=r"several packages \(one-plugin, two-plugin\); remove one"):
        Registry("things").get("x")


# ---- dotted paths


def test_the_type_of_a_dict_may_be_a_path():
    assert MODELS.build({"type": "torch.nn.Linear", "in_features": 1, "out_features": 2}).out_features == 2


@pytest.mark.parametrize("ask", [MODELS.get, MODELS.check, MODELS.build])
def test_a_bare_string_never_imports_a_path(ask, site):
    site("canary_module.py", "raise AssertionError('imported')\n")
    with pytest.raises(UnknownNameError, match=r"goes into a dict: dict\(type='canary_module.Net'\)"):
        ask("canary_module.Net")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("torch.nn.Liner", UnknownNameError, "'torch.nn.Liner' cannot be imported: .*no attribute 'Liner'"),
        ("no_such_module.X", UnknownNameError, "cannot be imported: No module named 'no_such_module'"),
        (".X", UnknownNameError, "cannot be imported"),
        (".x.X", UnknownNameError, "cannot be imported"),
        ("torch.nn.functional", ConfigError, "'torch.nn.functional' is no class or function but module"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(path, error, message):
    with pytest.raises(error, match=message):
        MODELS.check({"type": path})


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
    with pytest.raises(ConfigError, match=r"needs 'dataset', 'indices'; add them beside 'type' \(c.yaml:3\)"):
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
