"""What in an environment is known to make trouble."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stratrun.environment.packages import wanted_torch

Parts = Mapping[str, Mapping[str, Any]]
_LEAST_SHARED, _LEAST_DISK = 0.25, 1.0
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": ("1", "each operation on a GPU is waited for"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "each exchange is checked by another one"),
}


def faults(parts: Parts) -> list[str]:
    """A sentence for each: what is so, what comes of it, and what to do."""
    return [fault for look in _LOOKS for fault in _looked(look, parts)]


def _looked(look: Callable[[Parts], Iterator[str]], parts: Parts) -> list[str]:
    try:
        return list(look(parts))
    except (KeyError, TypeError, ValueError):  # of a part that could not be looked at
        return []


def _unused_accelerators(parts: Parts) -> Iterator[str]:
    torch, found = parts["torch"], parts["accelerators"]
    if not found["nodes"] or found["cuda"]:
        return
    if torch["cuda"] is None and torch["hip"] is None:
        yield (
            f"there is a GPU ({found['nodes'][0]}), and torch {torch['version']} was built without CUDA: "
            "runs go to the CPU; install a build with CUDA, see pytorch.org"
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        yield "CUDA_VISIBLE_DEVICES hides all GPUs from torch: runs go to the CPU; unset it, or name some"
    else:
        yield (
            f"there is a GPU ({found['nodes'][0]}) that torch cannot use: its CUDA {torch['cuda']} may want "
            f"a newer driver than {found.get('driver', 'none')}"
        )


def _kernels(parts: Parts) -> Iterator[str]:
    built = {name.partition("_")[2].rstrip("af")[:-1] for name in parts["torch"].get("built_for") or ()}
    for name, about in parts["accelerators"].items():
        if built and name.startswith("cuda:") and about["capability"].partition(".")[0] not in built:
            yield (
                f"{name} ({about['name']}) has capability {about['capability']}, which torch was not built "
                "for: kernels fail as they start; install a build of torch that names it"
            )


def _threads(parts: Parts) -> Iterator[str]:
    threads, cores = parts["torch"]["threads"], parts["machine"]["cores_usable"]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads * ranks > cores and threads > 1:
        each = f" in each of {ranks} ranks" if ranks > 1 else ""
        yield (
            f"{threads} threads{each} share {cores:g} cores, and wait for each other; set OMP_NUM_THREADS="
            f"{max(1, int(cores) // ranks)}, or env_cfg=dict(num_threads=...)"
        )


def _versions(parts: Parts) -> Iterator[str]:
    number = parts["torch"]["version"]
    for name, wanted in wanted_torch().items():
        if wanted.partition("+")[0] != number.partition("+")[0]:
            yield (
                f"{name} {parts['packages'].get(name, '')} was built for torch {wanted}, not {number}: its "
                "operations may be missing or crash; install the two together"
            )


def _room(parts: Parts) -> Iterator[str]:
    machine = parts["machine"]
    if machine.get("shared_memory", _LEAST_SHARED) < _LEAST_SHARED:
        yield (
            f"/dev/shm has {machine['shared_memory']:.2f} GiB, through which loader workers hand batches "
            "over: they die with a bus error when it is full; start the container with --shm-size=8g, or "
            "--ipc=host"
        )
    if machine["disk_free"] < _LEAST_DISK:
        yield f"{machine['disk_free']:.2f} GiB are free on the disk of this folder, where checkpoints go"


def _slow_settings(_: Parts) -> Iterator[str]:
    for name, (value, so) in _SLOW.items():
        if os.environ.get(name) == value:
            yield f"{name}={value}: {so}, which is for finding faults; unset it to train"


_LOOKS = (_unused_accelerators, _kernels, _threads, _versions, _room, _slow_settings)
