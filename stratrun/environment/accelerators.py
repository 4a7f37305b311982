"""How torch was built, and the accelerators that it and others see."""

from pathlib import Path
from typing import Any

import torch

from stratrun.distributed import known_backends

_GIB = 2**30
_DRIVER = Path("/proc/driver/nvidia/version")


def torch_build() -> dict[str, Any]:
    found: dict[str, Any] = {
        "version": torch.__version__,
        "commit": (torch.version.git_version or "")[:12],
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "backends": known_backends(),
        "threads": torch.get_num_threads(),
        "threads_between_operations": torch.get_num_interop_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "debug": bool(torch.version.debug),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": torch.backends.openmp.is_available(),
    }
    if torch.version.cuda is not None:
        found["cudnn"] = torch.backends.cudnn.version()
        found["nccl"] = _nccl()
        found["built_for"] = torch.cuda.get_arch_list()
    return found


def accelerators() -> dict[str, Any]:
    """What torch can use, and what else is there."""
    found: dict[str, Any] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if found["cuda"]:
        for number in range(torch.cuda.device_count()):
            found[f"cuda:{number}"] = _of_torch(number)
    found |= _of_driver()
    return found


def _of_torch(number: int) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(number)
    return {
        "name": about.name,
        "memory": round(about.total_memory / _GIB, 2),
        "capability": f"{about.major}.{about.minor}",
    }


def _of_driver() -> dict[str, Any]:
    """What there is by the driver, which sees devices that torch does not."""
    if not _DRIVER.is_file():
        return {"nodes": sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))}
    found: dict[str, Any] = {"driver": _DRIVER.read_text().splitlines()[0].partition(":")[2].strip()}
    found["nodes"] = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    try:
        import pynvml
    except ImportError:
        return found
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return found
    try:
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
        found["driver_cuda"] = pynvml.nvmlSystemGetCudaDriverVersion() / 1000
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found["memory_free"] = [round(pynvml.nvmlDeviceGetMemoryInfo(one).free / _GIB, 2) for one in handles]
    finally:
        pynvml.nvmlShutdown()
    return found


def _nccl() -> str | None:
    try:
        from torch.cuda import nccl

        number = nccl.version()
    except (ImportError, AttributeError, RuntimeError):  # built without it
        return None
    return ".".join(map(str, number)) if isinstance(number, tuple) else str(number)
