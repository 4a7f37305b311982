"""What is deprecated warns at the user's line, works until it is gone, and is gone when it was said to be."""

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest

import stratrun
import stratrun_ext
from stratrun import deprecation
from stratrun.deprecation import (
    Deprecation,
    StratrunDeprecationWarning,
    deprecated,
    renamed_arguments,
)
from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.registry import Registry

WHEN = dict(since="0.2", removed_in="0.4")


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    before = list(deprecation.ALL)
    yield
    deprecation.ALL[:] = before


class Named(Hook):
    """Called by its arguments."""

    @renamed_arguments({"every": "interval"}, **WHEN)
    def __init__(self, interval: int, *, limit: int = 0) -> None:
        self.interval, self.limit = interval, limit


def registry() -> Registry:
    made = Registry("things")
    made.register_module()(Named)
    made.renamed("OldNamed", "Named", **WHEN)
    return made


def test_a_function_warns_at_the_line_that_calls_it_and_works() -> None:
    @deprecated(use="twice", **WHEN)
    def double(x: int) -> int:
        """Twice as much."""
        return 2 * x

    with pytest.warns(StratrunDeprecationWarning, match=r"removed in 0\.4; use twice") as caught:
        assert double(3) == 6
    assert caught[0].filename == __file__
    assert double.__doc__ == "Twice as much."


def test_a_class_warns_when_it_is_made_and_stays_a_class() -> None:
    @deprecated(use="New", **WHEN)
    class Old:
        def __init__(self, x: int) -> None:
            self.x = x

    with pytest.warns(StratrunDeprecationWarning, match="Old is deprecated since stratrun 0.2"):
        made = Old(x=3)
    assert isinstance(made, Old) and made.x == 3


def test_an_old_argument_is_the_new_one_and_both_are_an_error() -> None:
    with pytest.warns(StratrunDeprecationWarning, match=r"Named\(every=\).*use interval=") as caught:
        assert Named(every=3).interval == 3  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="every= and interval=, which is its new name"):
        Named(3, every=3, interval=4)  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Named(3, limit=2).limit == 2


def test_a_config_may_have_the_old_argument_and_no_other_stranger() -> None:
    with pytest.warns(StratrunDeprecationWarning):
        assert registry().build({"type": "Named", "every": 3}).interval == 3
    with pytest.raises(ConfigError, match="did you mean 'limit'"):
        registry().check({"type": "Named", "every": 3, "limitt": 3})
    with pytest.raises(ConfigError, match="'every' is an old name of 'interval', which is given too"):
        registry().check({"type": "Named", "every": 3, "interval": 3})
    with pytest.raises(ConfigError, match="needs 'interval'"):
        registry().check({"type": "Named"})


def test_an_entry_is_found_by_its_old_name_which_is_not_listed() -> None:
    things = registry()
    with pytest.warns(StratrunDeprecationWarning, match="'OldNamed' among things"):
        assert things.get("OldNamed") is Named
    assert things.names() == ["Named"]


def test_a_warning_within_the_package_is_told_at_the_line_of_the_user() -> None:
    things = registry()
    with pytest.warns(StratrunDeprecationWarning) as caught:
        things.build({"type": "OldNamed", "interval": 1})
    assert caught[0].filename == __file__


def test_what_is_removed_before_it_was_deprecated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"removed in 0\.2"):
        Deprecation("this", "0.10", "0.2", "that")


def test_nothing_is_kept_beyond_the_version_that_was_to_remove_it() -> None:
    for package in (stratrun, stratrun_ext):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                with suppress(ModuleNotFoundError):  # of an extra that is not installed
                    importlib.import_module(module.name)
    assert overdue(stratrun.__version__) == []
    Deprecation("this", "0.1", "0.2", "that")
    assert overdue("0.2.0") == ["this"] and overdue("0.10") == ["this"] and overdue("0.1.9") == []


def overdue(version: str) -> list[str]:
    now = deprecation._number(version)
    declared = [one for one in deprecation.ALL if not one.what.startswith(__name__)]
    return [one.what for one in declared if deprecation._number(one.removed_in) <= now]


def test_renamings_add_up() -> None:
    class Twice:
        @renamed_arguments({"oldest": "older"}, since="0.2", removed_in="0.4")
        @renamed_arguments({"older": "new"}, since="0.3", removed_in="0.5")
        def __init__(self, *, new: int) -> None:
            self.new = new

    things = Registry("things")
    things.register_module()(Twice)
    things.renamed("Once", "Twice", **WHEN)
    things.renamed("Never", "Once", **WHEN)
    for name, argument in (("Never", "oldest"), ("Once", "older"), ("Twice", "new")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert things.build({"type": name, argument: 3}).new == 3
