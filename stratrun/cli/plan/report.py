"""A plan as a reader, or a program, likes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stratrun.cli.ckpt import text

if TYPE_CHECKING:
    from stratrun.cli.plan.planning import Plan

_ORDER = ("weights", "gradients", "optimizer", "averages", "buffers", "batch", "gathered", "activations")
_ABOUT = {
    "averages": "moving averages of the weights",
    "gathered": "whole parameters, while they are needed",
    "activations": "what the forward pass keeps, and temporary tensors",
}


def as_json(plan: Plan) -> str:
    exchanges = [
        {"name": kind.name, "ranks": kind.ranks, "count": count, "bytes": plan.traffic.sizes[kind]}
        for kind, count in plan.traffic.counts.items()
    ]
    figures: dict[str, Any] = {
        name: getattr(plan, name)
        for name in plan.__dataclass_fields__
        if name not in ("traffic", "peak", "layouts")
    }
    figures["layouts"] = [
        {"layout": layout, "tensors": count, "parameters": numbers}
        for layout, (count, numbers) in plan.layouts.items()
    ]
    figures["peak"] = None if plan.peak is None else asdict(plan.peak)
    figures["exchanges"] = {"of_an_update": exchanges, "sent_per_rank": plan.traffic.sent}
    figures["checkpoint"] = {"bytes": plan.checkpoint, "seconds": plan.checkpoint / plan.bandwidth}
    return json.dumps(figures, indent=1)


def as_text(plan: Plan) -> str:
    return "\n".join(
        [*_head(plan), "", *_memory(plan), "", *_traffic(plan), *_checkpoint(plan), *_remarks(plan)]
    )


def _head(plan: Plan) -> Iterator[str]:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    ranks = "rank" if plan.world_size == 1 else "ranks"
    yield f"{plan.strategy} on {plan.world_size:,} {ranks} ({mesh}), {plan.precision}"
    frozen = plan.parameters - plan.trainable
    yield f"{plan.parameters:,} parameters{f', of which {frozen:,} are frozen' if frozen else ''}"
    for layout, (count, numbers) in plan.layouts.items():
        yield f"  {numbers:,} in {count} tensor{'s' if count != 1 else ''}: {layout}"
    if plan.batch is not None:
        whole = plan.batch * plan.data_ranks * plan.accumulate
        window = f" x {plan.accumulate} accumulated" if plan.accumulate > 1 else ""
        parts = ranks if plan.data_ranks == plan.world_size else "groups of ranks"
        yield f"{whole:,} samples an update: {plan.batch} x {plan.data_ranks:,} {parts}{window}"


def _memory(plan: Plan) -> Iterator[str]:
    known = [kind for kind in _ORDER if kind in plan.memory]
    at_peak = {} if plan.peak is None else plan.peak.parts
    rows = [
        (
            kind,
            text.size(plan.memory[kind]),
            text.size(at_peak.get(kind, 0)) if at_peak else "",
            _ABOUT.get(kind, ""),
        )
        for kind in (*known, *sorted(plan.memory.keys() - set(_ORDER)))
    ]
    lasting = sum(
        plan.memory.get(kind, 0) for kind in ("weights", "gradients", "optimizer", "averages", "buffers")
    )
    if plan.peak is None:
        rows.append(("together", text.size(lasting), "", "without activations"))
        yield from text.table(("memory of a rank", "", "", ""), rows, right="<>><")
        return
    phase = "" if not plan.peak.phase else f"at most, in the {plan.peak.phase}"
    rows.append(("together", "", text.size(plan.peak.total), phase))
    yield from text.table(("memory of a rank", "at most", "at the peak", ""), rows, right="<>><")


def _traffic(plan: Plan) -> Iterator[str]:
    if plan.peak is None:
        return
    if not plan.traffic.counts:
        yield "exchanges of an update: none"
    else:
        rows = [
            (kind.name, f"{count:,}", f"{kind.ranks:,}", text.size(plan.traffic.sizes[kind]))
            for kind, count in plan.traffic.counts.items()
        ]
        yield from text.table(("exchanges of an update", "times", "ranks", "size"), rows, right="<>>>")
        yield f"each rank sends {text.size(plan.traffic.sent)}, if the ranks stand in a ring"
    yield ""


def _checkpoint(plan: Plan) -> Iterator[str]:
    seconds, bandwidth = plan.checkpoint / plan.bandwidth, text.size(int(plan.bandwidth))
    yield f"checkpoint: {text.size(plan.checkpoint)}, {_time(seconds)} at {bandwidth} a second"


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds / 60:.3g} min"


def _remarks(plan: Plan) -> Iterator[str]:
    for remark in plan.remarks:
        yield f"note: {remark}"
