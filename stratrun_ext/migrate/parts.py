"""Weights and the state of an optimizer of another framework, written as ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stratrun.checkpoint import Checkpointer
from stratrun.checkpoint.foreign import Placeholder
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.storage import Folder
from stratrun_ext.migrate.outputs import writing
from stratrun_ext.migrate.report import Report

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def tensors_of(weights: Mapping[str, Any], where: str, report: Report) -> dict[str, Tensor]:
    """The weights of a state dict, without what else is in it."""
    found = {name: one for name, one in weights.items() if is_weight(name, one)}
    for name, one in weights.items():
        if name not in found:
            report.add("left for you", f"{where}.{name}", None, f"is not taken: {named(one)}")
    return found


def is_weight(name: Any, value: Any) -> bool:
    """Whether it can be written as it is: a tensor in memory, by a name."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    return isinstance(name, str) and plain and not value.is_quantized


def named(value: Any) -> str:
    """What a value is, in a word or two."""
    if not isinstance(value, Tensor):
        return repr(value) if isinstance(value, Placeholder) else f"a {type(value).__name__}"
    kinds = {"quantized": value.is_quantized, "without values": value.is_meta}
    kind = next((kind for kind, so in kinds.items() if so), str(value.layout).removeprefix("torch."))
    return f"a tensor, {kind}"


def write_weights(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write a safetensors file."""
    # Copies, as tensors that share memory are refused there.
    whole = {name: one.clone().contiguous() for name, one in tensors.items()}
    with writing(out):
        try:
            save_file(whole, out, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_state(state: Any, weights: Mapping[str, Tensor], count: int, out: Path, report: Report) -> None:
    """Write weights and the state of a torch optimizer as a checkpoint of ours, in a folder beside `out`.

    Args:
        count: Iterations that were done, by which the checkpoint is called.
        out: The file of the weights alone; the folder is called as it is, without its ending.
    """
    try:
        named = _by_name(state, weights)
    except ValueError as error:
        report.add("left for you", "optimizer", None, f"is not taken: {error}")
        return
    place = out.with_suffix("")
    checkpointer = Checkpointer(Folder(str(place)), Collectives(ProcessEnv()), run_id="migrated")
    try:
        url = checkpointer.save(count, {"model": weights, "optimizers": {"optimizer": named}})
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
