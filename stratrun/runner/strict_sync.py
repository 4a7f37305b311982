"""Hooks that wait for the device between log points, named: ``env_cfg=dict(strict_sync=True)``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from stratrun.distributed.syncs import Sync, SyncWatch
from stratrun.hooks import Hook
from stratrun.hooks.base import PRIORITIES


class StrictSync(Hook):
    """Watches the hooks of others at each iteration, and warns once of each that waits.

    An iteration at which values are logged is no matter, as reading them waits anyway. Nor are points
    that come once an epoch. Watching slows every call down, so it is for finding out.
    """

    # So that an iteration begins with the verdict on the one before.
    priority: ClassVar[int] = PRIORITIES["HIGHEST"]

    def __init__(self) -> None:
        self._suspects: dict[str, Sync] = {}
        self._named: set[str] = set()
        self._logged = False

    @contextmanager
    def around(self, hook: Hook, point: str) -> Iterator[None]:
        """To be entered around each call of a hook (`HookList.around`)."""
        name = f"{type(hook).__name__}.{point}"
        ours = type(hook).__module__.partition(".")[0] == "stratrun"
        if ours or not point.endswith("_iter") or name in self._named:
            yield
            return
        with SyncWatch() as found:
            yield
        if found.syncs:
            self._suspects.setdefault(name, found.syncs[0])

    def before_log(self) -> None:
        self._logged = True

    def before_train_iter(self) -> None:
        self._judge()

    def after_train_epoch(self) -> None:
        self._judge()

    def after_train(self) -> None:
        self._judge()

    def before_val_iter(self) -> None:
        self._judge()

    def after_val_epoch(self) -> None:
        self._judge()

    def before_test_iter(self) -> None:
        self._judge()

    def after_test_epoch(self) -> None:
        self._judge()

    def before_predict_iter(self) -> None:
        self._judge()

    def after_predict_epoch(self) -> None:
        self._judge()

    def _judge(self) -> None:
        """Name who has waited since the last call, unless values were logged meanwhile."""
        for name, sync in self._suspects.items():
            if not self._logged:
                self._named.add(name)
                warnings.warn(
                    f"strict_sync: {name} waits for the device between log points, by {sync}; keep the value "
                    "as a tensor and read it in before_log(values), which is called where values are logged",
                    stacklevel=2,
                )
        self._suspects.clear()
        self._logged = False
