"""Test-time augmentation: several views of each batch, and one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratrun.errors import ConfigError, nearest
from stratrun.loops.base import BaseLoop
from stratrun.loops.evaluate import TestLoop, ValLoop
from stratrun.loops.merging import MERGES, Merge, apart, tensors_in
from stratrun.loops.predict import PredictLoop
from stratrun.registry import LOOPS, TRANSFORMS

if TYPE_CHECKING:
    from stratrun.context import RunContext

_KEYS = ("transform", "inverse")


class View:
    """A batch changed, and the outputs for it changed back.

    Args:
        inverse: Takes the outputs for the changed batch; None leaves them.
    """

    def __init__(self, transform: Callable[[Any], Any], inverse: Callable[[Any], Any] | None = None) -> None:
        self.transform = transform
        self.inverse = inverse

    @classmethod
    def build(cls, spec: Any, where: str) -> View:
        """Of a function, a spec, ``dict(transform=, inverse=)``, or an object with a method `inverse`."""
        if isinstance(spec, Mapping) and "transform" in spec:
            inverse = TRANSFORMS.build(spec.get("inverse"), where=f"{where}.inverse")
            return cls(TRANSFORMS.build(spec["transform"], where=f"{where}.transform"), inverse)
        built = TRANSFORMS.build(spec, where=where)
        return cls(built, getattr(built, "inverse", None))


class _Views(BaseLoop):
    """Steps over views of a batch in the place of steps over the batch."""

    views: Sequence[View]
    merge: Merge
    original: bool

    def see(self, transforms: Any, merge: Any, original: bool) -> None:
        self.check({"transforms": transforms, "merge": merge, "original": original})
        self.views = [View.build(one, f"transforms.{i}") for i, one in enumerate(transforms)]
        self.merge = MERGES[merge] if isinstance(merge, str) and merge in MERGES else TRANSFORMS.build(merge)
        self.original = original

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        super().check(options)
        transforms = options.get("transforms")
        if isinstance(transforms, str | Mapping) or not isinstance(transforms, Sequence) or not transforms:
            raise ConfigError(
                f"transforms={transforms!r} must be a list of functions of a batch, or of specs; for example "
                "[flip], or [dict(transform=flip, inverse=flip_back)]"
            )
        for i, one in enumerate(transforms):
            _check_view(one, f"transforms.{i}")
        merge = options.get("merge", "mean")
        if isinstance(merge, str) and merge not in MERGES and merge not in TRANSFORMS.names():
            raise ConfigError(f"merge={merge!r} is unknown; {nearest(merge, [*MERGES, *TRANSFORMS.names()])}")
        if not isinstance(merge, str):
            _check_callable(merge, "merge")
        if not isinstance(options.get("original", True), bool):
            raise ConfigError(f"original={options['original']!r} must be True or False")

    def run_iter(self, idx: int, data_batch: Any) -> Any:
        step = getattr(self.runner.engine, f"{self.job}_step")
        given = tensors_in(data_batch)
        seen = [apart(step(data_batch), given)] if self.original else []
        for view in self.views:
            outputs = apart(step(view.transform(data_batch)), given)
            seen.append(outputs if view.inverse is None else view.inverse(outputs))
        merged = self.merge(seen)
        if self.evaluator is not None:
            self.evaluator.process(data_batch, merged)
        return merged


@LOOPS.register_module()
class TTAValLoop(_Views, ValLoop):
    """Validation over views of each batch (test-time augmentation); metrics see each sample once.

    Each view is one forward pass, without gradients; hooks get the merged outputs with the batch as it was.

    Args:
        transforms: What makes a view of a batch: functions, or specs of `TRANSFORMS`. They must leave the
            batch that they are given alone. ``dict(transform=, inverse=)``, or an object with a method
            `inverse`, also says what turns the outputs back.
        merge: ``"mean"`` or ``"max"`` of each floating point output, or a function of the list of outputs.
        original: Whether the batch as it is counts as a view too, the first.
    """

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        evaluator: Any,
        transforms: Sequence[Any],
        *,
        merge: Any = "mean",
        original: bool = True,
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.see(transforms, merge, original)


@LOOPS.register_module()
class TTATestLoop(_Views, TestLoop):
    """`TTAValLoop` on the test data."""

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        evaluator: Any,
        transforms: Sequence[Any],
        *,
        merge: Any = "mean",
        original: bool = True,
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.see(transforms, merge, original)


@LOOPS.register_module()
class TTAPredictLoop(_Views, PredictLoop):
    """Predictions over views of each batch, merged: see `TTAValLoop`; and `PredictLoop` for `collect`."""

    def __init__(
        self,
        runner: RunContext,
        dataloader: Any,
        transforms: Sequence[Any],
        *,
        merge: Any = "mean",
        original: bool = True,
        collect: bool = True,
    ) -> None:
        PredictLoop.__init__(self, runner, dataloader, collect=collect)
        self.see(transforms, merge, original)


def _check_view(spec: Any, where: str) -> None:
    if isinstance(spec, Mapping) and "transform" in spec:
        for key in spec:
            if key not in _KEYS:
                raise ConfigError(f"{where} takes no {key!r}; {nearest(str(key), _KEYS)}")
        if spec.get("inverse") is not None:
            _check_callable(spec["inverse"], f"{where}.inverse")
        spec, where = spec["transform"], f"{where}.transform"
    _check_callable(spec, where)


def _check_callable(spec: Any, where: str) -> None:
    if isinstance(spec, str | type | Mapping):
        TRANSFORMS.check(spec, where=where)
    elif not callable(spec):
        raise ConfigError(f"{where}={spec!r} cannot be called; give a function, a name or a dict with 'type'")
