"""Settings of the process: `env_cfg` and `randomness`."""

import math
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch
import torch.multiprocessing

from stratrun.distributed import check_backend
from stratrun.errors import ConfigError, nearest
from stratrun.problems import part, without
from stratrun.seed import set_deterministic

_COLLECTING = ("paused", "python")
_WARN = "warn"


@dataclass(frozen=True, slots=True)
class EnvSettings:
    """What `env_cfg` may set. None leaves a setting as it is."""

    cudnn_benchmark: bool | None = None
    """Let cuDNN try its algorithms and keep the fastest; pays where input sizes repeat."""
    tf32: bool | None = None
    """Compute float32 products in TF32 on GPUs that have it: faster, ten bits of mantissa."""
    num_threads: int | None = None
    """Threads for work within an operation on the CPU. It changes how sums are rounded."""
    mp_start_method: str | None = None
    """How loader workers are started: `fork`, `spawn` or `forkserver`."""
    backend: str | None = None
    """Process group backend, in place of the accelerator's own."""
    timeout: float = 600.0
    """Seconds after which a collective that some rank never joined is an error."""
    strict_sync: bool | None = None
    """Name the hooks that wait for the device between log points. Slows each step: for finding out."""
    gc: str = "paused"
    """`paused`: in training, Python's collector of garbage runs where values are logged and between epochs;
    `python`: wherever it wants to."""
    channels_last: bool | None = None
    """Lay out weights and batches of images with their channels last in memory."""

    def apply(self) -> None:
        if self.cudnn_benchmark is not None:
            torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if self.tf32 is not None:
            # The older of torch's two interfaces: reading through it fails once the newer was used,
            # and torch's own compiler still reads through it.
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        if self.mp_start_method is not None:
            torch.multiprocessing.set_start_method(self.mp_start_method, force=True)

    @property
    def group_timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout)


@dataclass(frozen=True, slots=True)
class Randomness:
    """What `randomness` may set."""

    seed: int | None = None
    """None draws one, the same for all ranks, and says which."""
    deterministic: bool | str | None = False
    """Choose deterministic algorithms, and refuse operations that have none; with `warn`, warn of them."""

    def apply(self) -> None:
        if self.deterministic:
            # Read by cuBLAS when it starts; without it its sums may differ from run to run.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            set_deterministic(True, warn_only=self.deterministic == _WARN)


def draw_seed() -> int:
    return secrets.randbelow(2**31)


def parse_env(spec: Any) -> EnvSettings:
    """Raises ConfigError for an unknown setting, or a value of the wrong kind."""
    settings = EnvSettings(**_known(spec, "env_cfg", EnvSettings))
    methods = torch.multiprocessing.get_all_start_methods()
    if settings.mp_start_method is not None and settings.mp_start_method not in methods:
        raise ConfigError(
            f"env_cfg: mp_start_method={settings.mp_start_method!r} is unknown; "
            f"{nearest(str(settings.mp_start_method), methods)}"
        )
    _check_flags("env_cfg", settings, ("cudnn_benchmark", "tf32", "strict_sync", "channels_last"))
    if settings.gc not in _COLLECTING:
        raise ConfigError(f"env_cfg: gc={settings.gc!r} is unknown; {nearest(str(settings.gc), _COLLECTING)}")
    if settings.backend is not None:
        check_backend(settings.backend)
    threads, timeout = settings.num_threads, settings.timeout
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"env_cfg: num_threads={threads!r} must be a whole number above 0")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ConfigError(f"env_cfg: timeout={timeout!r} must be a number of seconds above 0")
    return settings


def parse_randomness(spec: Any) -> Randomness:
    """Raises ConfigError for an unknown setting, or a seed that is none."""
    settings = Randomness(**_known(spec, "randomness", Randomness))
    if settings.seed is not None and (isinstance(settings.seed, bool) or not isinstance(settings.seed, int)):
        raise ConfigError(f"randomness: seed={settings.seed!r} must be a whole number")
    if settings.seed is not None and not -(2**63) <= settings.seed < 2**63:
        raise ConfigError(
            f"randomness: seed={settings.seed!r} must fit into 64 bits, such as {settings.seed % 2**32}"
        )
    if not isinstance(settings.deterministic, bool | None) and settings.deterministic != _WARN:
        raise ConfigError(
            f"randomness: deterministic={settings.deterministic!r} must be True, False or {_WARN!r}, which "
            "warns of what True refuses"
        )
    return settings


def _check_flags(where: str, settings: Any, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, bool | None):
            raise ConfigError(f"{where}: {name}={value!r} must be True or False")


def _known(spec: Any, where: str, settings: type) -> dict[str, Any]:
    if spec is None:
        return {}
    known = [field.name for field in fields(settings)]
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}={spec!r} must be a dict; its settings are {', '.join(known)}")
    unknown = [key for key in spec if key not in known]
    for key in unknown:
        with part(where):
            raise ConfigError(f"{where} has no setting {key!r}; {nearest(str(key), known)}")
    return without(spec, unknown)
