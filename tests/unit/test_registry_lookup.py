"""Where a registry looks for a name."""

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from stratrun.errors import ConfigError, MissingDependencyError, UnknownNameError, nearest
from stratrun.registry import (
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


def test_of_a_module_that_lists_no_names_its_own_public_classes_are_offered(site):
    text = "from collections import Counter\nclass Own:\n    pass\nclass _Private:\n    pass\nvalue = 1\n"
    site("bare_fallback.py", text)
    registry = Registry("things", fallbacks=("bare_fallback",))
    assert registry.names() == ["Own"]
    for name in ("Counter", "_Private", "value"):
        with pytest.raises(UnknownNameError):
            registry.get(name)


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
    assert list(late.entries()) == ["Builtin"]
    assert late.names() == ["Builtin"]


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


def test_of_very_many_names_some_are_listed_and_the_others_counted() -> None:
    names = [f"a{number:03}" for number in range(100)] + ["zebra"]
    told = nearest("zq1", names)
    assert told.startswith("known: zebra, a000, a001, ") and told.endswith(", a038 and 61 more")
    assert nearest("zq1", names[:40]).endswith(", a039")
