from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from stratrun.errors import MissingDependencyError, StratrunError
from stratrun.hooks.base import Hook
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes the picture of the run into the work dir when training ends: ``report.html``.

    Also where it ends with an error, as then it is looked at most. The command ``stratrun report``
    writes it at any time.

    Raises:
        MissingDependencyError: plotly is not installed (the extra ``report``).
    """

    # Behind whatever logs.
    priority = 100

    def __init__(self) -> None:
        if find_spec("plotly") is None:
            raise MissingDependencyError(
                "ReportHook draws with plotly, which is not installed; pip install 'stratrun[report]'"
            )

    def after_run(self, runner: RunContext) -> None:
        self._write(runner)

    def on_exception(self, runner: RunContext) -> None:
        if runner.iter:
            self._write(runner)

    def _write(self, runner: RunContext) -> None:
        try:
            written = runner.write_report()
        except StratrunError as error:
            # The run itself went well, or has an error of its own to tell.
            runner.loggers.say(f"  no report: {error}")
        else:
            if written is not None:
                runner.loggers.say(f"  report: {written}")
