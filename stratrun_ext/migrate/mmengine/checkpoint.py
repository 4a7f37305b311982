"""A checkpoint of MMEngine as weights and a checkpoint of ours, with a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.foreign import Placeholder, read_with_placeholders
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import CheckpointError
from stratrun.storage import Folder
from stratrun_ext.migrate.mmengine.report import Report

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
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
    tensors = _tensors(weights, "state_dict", report)
    _save(tensors, out)
    report.add("mapped", "state_dict", None, f"{len(tensors)} tensors in {out}")
    if weights is payload:
        return report
    trained = _trained(payload, tensors, out, report)
    _optimizer(payload, trained, out, report)
    _rest(payload, report)
    return report


def _tensors(weights: Mapping[str, Any], where: str, report: Report) -> dict[str, Tensor]:
    found = {name: one for name, one in weights.items() if isinstance(one, Tensor)}
    for name in weights:
        if name not in found:
            report.add("nothing to do", f"{where}.{name}", None, "is no tensor, and left out")
    return found


def _save(tensors: Mapping[str, Tensor], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    # Copies, as tensors that share memory are refused there.
    save_file(
        {name: one.clone().contiguous() for name, one in tensors.items()}, out, metadata={"format": "pt"}
    )


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
    _save(trained, other)
    note = f"{out} has the averages, as theirs is evaluated with; what training goes on with is in {other}"
    report.add("changed", "ema_state_dict", None, note)
    return trained


def _optimizer(payload: Mapping[str, Any], weights: dict[str, Tensor], out: Path, report: Report) -> None:
    state = payload.get("optimizer")
    if state is None:
        report.add("nothing to do", "optimizer", None, "is not in it")
        return
    try:
        named = _by_name(state, weights)
    except ValueError as error:
        report.add("left for you", "optimizer", None, f"is not taken: {error}")
        return
    meta = payload.get("meta")
    count = meta.get("iter") if isinstance(meta, Mapping) else None
    place = out.with_suffix("")
    checkpointer = Checkpointer(Folder(str(place)), Collectives(ProcessEnv()), run_id="mmengine")
    try:
        shared = {"model": weights, "optimizers": {"optimizer": named}}
        url = checkpointer.save(count if isinstance(count, int) else 0, shared)
    finally:
        checkpointer.close()
    note = f"with the weights in {url}; load_from: {{path: {place}, parts: [model, optimizer]}} takes both"
    report.add("mapped", "optimizer", None, note)


def _by_name(state: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a torch optimizer with names in the place of numbers.

    Raises:
        ValueError: the names cannot be told.
    """
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state.get("state"), Mapping):
        raise ValueError("it is of several optimizers, or of none of torch's form")
    # Numbers go by the order in which the model has its parameters, which is that of its state dict.
    names = [
        name
        for name, one in weights.items()
        if one.is_floating_point() and name.rpartition(".")[2] not in _STATISTICS
    ]
    numbers = [number for group in groups for number in group["params"]]
    if sorted(numbers) != list(range(len(names))):
        raise ValueError(f"it has {len(numbers)} parameters, and the weights {len(names)} that may be such")
    of_number = dict(zip(sorted(numbers), names, strict=True))
    moments: dict[str, Any] = {}
    for number, values in state["state"].items():
        name = of_number[number]
        for key, one in values.items():
            if isinstance(one, Placeholder):
                raise ValueError(f"{key!r} of parameter {number} is {one!r}")
            if isinstance(one, Tensor) and one.dim() and one.shape != weights[name].shape:
                shapes = f"{tuple(one.shape)} and {tuple(weights[name].shape)}"
                raise ValueError(
                    f"{key!r} of parameter {number} and weight {name!r} have the shapes {shapes}"
                )
        moments[name] = dict(values)
    named = [
        {**_plain(group), "params": [of_number[number] for number in group["params"]]} for group in groups
    ]
    return {"state": moments, "param_groups": named}


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (bool, int, float, str, tuple, list, type(None), torch.Tensor)
    return {key: one for key, one in group.items() if isinstance(one, kinds)}


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
