"""A checkpoint of MMEngine as weights and a checkpoint of ours, with a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stratrun.checkpoint.foreign import read_with_placeholders
from stratrun.errors import CheckpointError
from stratrun_ext.migrate.parts import tensors_of, write_state, write_weights
from stratrun_ext.migrate.report import Report

_AVERAGED, _COUNT = "module.", "steps"


def migrate_checkpoint(source: Path, out: Path) -> Report:
    """Write the weights to `out`, a safetensors file, and with the optimizer's state to a folder beside it.

    Raises:
        CheckpointError: it cannot be read, or holds no weights by name.
    """
    report, payload = Report(), read_with_placeholders(source)
    weights = payload.get("state_dict", payload) if isinstance(payload, Mapping) else None
    if not isinstance(weights, Mapping) or not any(isinstance(one, Tensor) for one in weights.values()):
        has = (
            ", ".join(map(repr, list(payload)[:8]))
            if isinstance(payload, Mapping)
            else type(payload).__name__
        )
        raise CheckpointError(
            f"{source} is no checkpoint of MMEngine: it has no weights in 'state_dict', but {has}"
        )
    tensors = tensors_of(weights, "state_dict", report)
    write_weights(tensors, out)
    report.add("mapped", "state_dict", None, f"{len(tensors)} tensors in {out}")
    if weights is payload:
        return report
    trained = _trained(payload, tensors, out, report)
    _optimizer(payload, trained, out, report)
    _rest(payload, report)
    return report


def _trained(
    payload: Mapping[str, Any], tensors: dict[str, Tensor], out: Path, report: Report
) -> dict[str, Tensor]:
    """The weights that training goes on with: where there are averages, theirs are under the other name."""
    averaged = payload.get("ema_state_dict")
    if not isinstance(averaged, Mapping):
        return tensors
    plain = {name.removeprefix(_AVERAGED): one for name, one in averaged.items() if name != _COUNT}
    # Buffers that are not averaged are in either; those of the model are in both.
    trained = {
        **tensors,
        **{name: one for name, one in plain.items() if isinstance(one, Tensor) and name in tensors},
    }
    other = out.with_suffix(f".plain{out.suffix}")
    write_weights(trained, other)
    note = f"{out} has the averages, as theirs is evaluated with; what training goes on with is in {other}"
    report.add("changed", "ema_state_dict", None, note)
    return trained


def _optimizer(payload: Mapping[str, Any], weights: dict[str, Tensor], out: Path, report: Report) -> None:
    state = payload.get("optimizer")
    if state is None:
        report.add("nothing to do", "optimizer", None, "is not in it")
        return
    meta = payload.get("meta")
    count = meta.get("iter") if isinstance(meta, Mapping) else None
    write_state(state, weights, count if isinstance(count, int) else 0, out, report)


def _rest(payload: Mapping[str, Any], report: Report) -> None:
    meta = payload.get("meta")
    if isinstance(meta, Mapping):
        count = f"it was made after epoch {meta.get('epoch')}, iteration {meta.get('iter')}"
        report.add("left for you", "meta", None, f"{count}; counters begin at 0, so train for what is left")
    if payload.get("param_schedulers"):
        note = "begin anew; the learning rates of the optimizer are taken where the run has no schedule"
        report.add("left for you", "param_schedulers", None, note)
    if "message_hub" in payload:
        report.add("nothing to do", "message_hub", None, "has values that were logged")
    known = ("meta", "state_dict", "ema_state_dict", "optimizer", "param_schedulers", "message_hub")
    for key in payload:
        if key not in known:
            report.add("left for you", str(key), None, "is not known, and not taken")
