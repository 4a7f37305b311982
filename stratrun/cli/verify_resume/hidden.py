"""What the user's objects hold at the end that no checkpoint has: where differences come from."""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from stratrun.hooks import Hook

_DEEPEST = 3
_MANY = 10_000
_SHOWN = 60
_OF_MODULES = frozenset(vars(nn.Module()))


def hidden_state(runner: Any) -> dict[str, str]:
    """A short text for each attribute of a hook, the model or the training data, by what it is called."""
    found: dict[str, str] = {}
    for hook in runner.hooks:
        # A hook that saves something is taken to save what it needs.
        if not _is_ours(hook) and type(hook).state_dict is Hook.state_dict:
            found |= _attributes(f"hook {type(hook).__name__}", hook)
    for name, module in runner.model.named_modules():
        called = f"model {type(module).__name__}{f' ({name})' if name else ''}"
        # What is saved by other means than the names of tensors.
        if type(module).get_extra_state is nn.Module.get_extra_state:
            own = {key: value for key, value in vars(module).items() if key not in _OF_MODULES}
            found |= _texts(called, own)
        buffers = {key: module._buffers[key] for key in sorted(module._non_persistent_buffers_set)}
        found |= _texts(called, buffers)
    dataset = getattr(runner.train_dataloader, "dataset", None)
    # Of several loaders there are several.
    for one in dataset.values() if isinstance(dataset, dict) else [] if dataset is None else [dataset]:
        found |= _attributes(f"training data {type(one).__name__}", one)
    return found


def _is_ours(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "stratrun"


def _attributes(owner: str, value: object, depth: int = 1) -> dict[str, str]:
    return _texts(owner, getattr(value, "__dict__", {}), depth)


def _texts(owner: str, attributes: Mapping[str, Any], depth: int = 1) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in attributes.items():
        text = text_of(value)
        if text is not None:
            found[f"{owner}.{name}"] = text
        elif depth < _DEEPEST and not _is_ours(value) and not isinstance(value, type | nn.Module):
            found |= _attributes(f"{owner}.{name}", value, depth + 1)
    return found


def text_of(value: Any) -> str | None:
    """What tells two values apart; None for one that cannot be compared."""
    if value is None or isinstance(value, bool | int | float | str):
        return _short(repr(value))
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, digest {_digest(value)}"
    if isinstance(value, torch.Generator):
        return f"a torch.Generator in state {_digest(value.get_state())}"
    if isinstance(value, random.Random):
        return f"a random.Random in state {_digest(value.getstate())}"
    if hasattr(value, "bit_generator"):
        return f"a numpy Generator in state {_digest(value.bit_generator.state)}"
    if type(value).__name__ == "RandomState":
        return f"a numpy RandomState in state {_digest(value.get_state())}"
    if isinstance(value, Mapping | list | tuple | deque | set | frozenset):
        return _container(value)
    return None


def _container(value: Any) -> str | None:
    if len(value) > _MANY:
        return None
    texts = list(_items(value))
    if any(text is None for text in texts):
        return None
    if isinstance(value, set | frozenset):
        texts.sort(key=str)
    return _short(f"[{', '.join(map(str, texts))}]")


def _items(value: Any) -> Iterator[str | None]:
    if not isinstance(value, Mapping):
        yield from map(text_of, value)
        return
    for key, item in value.items():
        text = text_of(item)
        yield None if text is None else f"{key!r}: {text}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... (digest {_digest(text)})"


def _digest(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        data = repr(value).encode()
    return f"{zlib.crc32(data):08x}"
