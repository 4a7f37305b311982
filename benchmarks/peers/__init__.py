"""The bare loop and other frameworks, each used as its own documentation says.

A module for each, with its variants; those of what is not installed are left out.
"""

import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from peers.task import Batch, Clock, Net, Task, Variant

MODULES = {
    "fabric": "lightning-fabric",
    "ignite": "pytorch-ignite",
    "tnt": "torchtnt",
    "mmengine": "mmengine",
    "accelerate_loop": "accelerate",
    "lightning": "pytorch-lightning",
}
"""The module for each peer, and the distribution that it needs."""

__all__ = ["MODULES", "Batch", "Clock", "Net", "Task", "Variant", "installed", "variants"]


def installed() -> dict[str, str]:
    """Modules of those peers that are there, with the version of each."""
    found = {}
    for module, distribution in MODULES.items():
        try:
            found[module] = version(distribution)
        except PackageNotFoundError:
            print(f"left out: {distribution} is not installed (pip install 'stratrun[bench]')")
    return found


def variants(job: str, modules: list[str] | None = None) -> list[Variant]:
    """All ways of doing a job, of all peers that are installed, or of these modules."""
    names = list(installed()) if modules is None else modules
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [import_module(f"peers.{name}") for name in names]
    return [variant for module in found for variant in module.VARIANTS if variant.job == job]
