"""A hook's method is passed what it names, however it takes that."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from stratrun.errors import ConfigError
from stratrun.hooks import Hook
from stratrun.hooks.dispatch import HookList

POINT = "before_train_iter"
RUN: Any = SimpleNamespace(step=3)


def heard(method: Any, point: str = POINT, **details: Any) -> Any:
    """What the method returned, as it was called at the point."""
    got: list[Any] = []

    class Method(Hook):
        pass

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        got.append(method(*args, **kwargs))

    setattr(Method, point, _signed(call, method))
    hooks = HookList()
    hooks.register(Method())
    hooks.call(RUN, point, details)
    return got[0]


def _signed(call: Any, method: Any) -> Any:
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    call.__signature__ = signature.replace(parameters=[own, *parameters])
    return call


def nothing() -> Any:
    return ()


def one(batch_idx: Any) -> Any:
    return (batch_idx,)


def turned(data_batch: Any, runner: Any, batch_idx: Any) -> Any:
    return data_batch, runner, batch_idx


def with_default(batch_idx: Any, runner: Any = None, other: Any = "mine") -> Any:
    return batch_idx, runner, other


def one_with_default(data_batch: Any = 7) -> Any:
    return (data_batch,)


def by_place(runner: Any, batch_idx: Any = 5, /) -> Any:
    return runner, batch_idx


def by_place_and_name(runner: Any, /, data_batch: Any, *, batch_idx: Any = 5, other: Any = "mine") -> Any:
    return runner, data_batch, batch_idx, other


def all_of_them(batch_idx: Any, /, **rest: Any) -> Any:
    return batch_idx, sorted(rest)


def test_methods_get_what_they_name_by_place_by_name_and_by_default() -> None:
    both = {"batch_idx": 3, "data_batch": "data"}
    assert heard(nothing, **both) == ()
    assert heard(one, **both) == (3,)
    assert heard(turned, **both) == ("data", RUN, 3)
    assert heard(with_default, **both) == (3, RUN, "mine")
    assert heard(one_with_default, **both) == ("data",)
    assert heard(by_place, **both) == (RUN, 3)
    assert heard(by_place_and_name, **both) == (RUN, "data", 3, "mine")
    assert heard(all_of_them, **both) == (3, ["data_batch", "runner"])


def test_what_a_point_of_the_user_s_does_not_give_keeps_its_default_or_is_told() -> None:
    point = "before_my_own"
    assert heard(with_default, point, batch_idx=3) == (3, RUN, "mine")
    assert heard(one_with_default, point) == (7,)
    assert heard(by_place, point) == (RUN, 5)
    assert heard(by_place_and_name, point, data_batch=1) == (RUN, 1, 5, "mine")
    for method in (one, turned, all_of_them):
        with pytest.raises(ConfigError, match=r"batch_idx|data_batch"):
            heard(method, point)


def test_what_a_point_of_ours_never_gives_is_refused_when_the_hook_is_registered() -> None:
    class Wrong(Hook):
        def before_train_iter(self, batch_index: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"asks for 'batch_index', .*did you mean 'batch_idx'"):
        HookList().register(Wrong())
