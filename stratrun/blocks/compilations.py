"""What has been compiled in a run, and what for."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

GOES_ON = 5
"""Recompiles of one function from which on they are warned of. Four may well be needed: for batches of
another size, for evaluation, and for inputs with and without a gradient."""


class Compilations:
    """Counts what torch compiles from when this is made on, and warns of what is compiled again and again.

    What it reads is not public, for want of anything that is; where a release of torch has it no longer,
    it counts less.
    """

    def __init__(self, labels: Mapping[tuple[str, int], str]) -> None:
        # Takes a second to import, which a run without compiling is spared.
        from torch._dynamo import config, utils

        self._utils, self._limit = utils, getattr(config, "recompile_limit", None)
        self._labels = labels
        self.graphs: int = 0
        self.breaks: int = 0
        self.seconds: float = 0.0
        self.recompiles: Counter[str] = Counter()
        """How often each function was compiled once more."""
        self.reasons: dict[str, list[str]] = {}
        self._totals = self._counted()
        self._told: list[Any] = list(utils.get_compilation_metrics())
        self._warned: set[str] = set()

    def look(self, iteration: int = 0) -> None:
        """Take note of what is new."""
        totals = self._counted()
        if totals == self._totals:
            return
        # The counters are torch's, and whoever wants to may set them back.
        new = [
            now - before if now >= before else now for now, before in zip(totals, self._totals, strict=True)
        ]
        self.graphs, self.breaks, self._totals = self.graphs + new[0], self.breaks + new[1], totals
        told = self._utils.get_compilation_metrics()
        known = {id(one) for one in self._told}
        for one in told:
            if id(one) not in known and one.is_forward is not False:
                self._take(one)
        self._told = told

    def describe(self) -> str:
        """One line for the end of a run."""
        self.look()
        if not self.graphs:
            return (
                "compile: nothing was compiled, as no forward that was to be was called; "
                "name other blocks with compile=dict(blocks=...)"
            )
        text = f"compile: {_count(self.graphs, 'graph')} in {self.seconds:.1f} s"
        if self.breaks:
            text += f", {_count(self.breaks, 'break')} between graphs"
        for name, count in self.recompiles.items():
            text += f"; {name} compiled {_count(count, 'time')} more: {', '.join(self.reasons[name])}"
        return text

    def _counted(self) -> tuple[int, int]:
        counters = self._utils.counters
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    def _take(self, metrics: Any) -> None:
        self.seconds += getattr(metrics, "entire_frame_compile_time_s", None) or 0.0
        reason = getattr(metrics, "recompile_reason", None)
        if not reason:
            return
        place = metrics.co_filename, metrics.co_firstlineno
        name = self._labels.get(place, f"{metrics.co_name} ({place[0]}:{place[1]})")
        # Only the first of several, without the number of what was compiled before.
        reason = reason.splitlines()[0].partition(": ")[2].strip() or reason
        self.recompiles[name] += 1
        reasons = self.reasons.setdefault(name, [])
        if reason not in reasons:
            reasons.append(reason)
        if (metrics.cache_size or 0) >= GOES_ON and name not in self._warned:
            self._warned.add(name)
            warnings.warn(self._warning(name, metrics.cache_size + 1, reason), stacklevel=2)

    def _warning(self, name: str, times: int, reason: str) -> str:
        text = f"{name} was compiled {times} times, the last time because of this: {reason}. "
        if self._limit is not None:
            text += f"After {self._limit} times torch runs it as it is. "
        if "size mismatch" in reason or "stride" in reason:
            return text + (
                "Give batches of one shape (drop_last=True, padding), or compile=dict(dynamic=True)"
            )
        return text + "Have blocks not differ in that, or leave them out with compile=dict(blocks=...)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
