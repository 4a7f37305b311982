"""Random numbers: seeding, and the state of every generator that a run draws from."""

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, the same on every machine and run."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (when it is loaded) and torch on every device."""
    random.seed(seed)
    torch.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def seed_host(seed: int) -> None:
    """Seed the generators of the host only: what a data set draws from.

    Goes round `torch.manual_seed`, which takes a hundred times as long because it
    visits every device.
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


@contextmanager
def host_rng_kept() -> Iterator[None]:
    """Leave the host's generators as they were found."""
    state = host_rng_state()
    try:
        yield
    finally:
        set_host_rng_state(state)


def host_rng_state() -> dict[str, Any]:
    """State of the host's generators: plain lists and tensors, safe to store."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
        state["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached]
    return state


def set_host_rng_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"])
    # Loaded on demand only: a run that had NumPy in use resumes with it in use.
    if "numpy" in state:
        import numpy

        kind, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))


def set_deterministic(enabled: bool) -> None:
    """Have torch choose deterministic algorithms, and refuse operations that have none."""
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    if enabled:
        torch.backends.cudnn.benchmark = False
