"""What a call in a rank, or a test, must leave as it found it: the state of the process that outlives it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stratrun.seed import host_rng_state, set_host_rng_state

# Set by pytest itself, or by libraries for themselves when they are first imported.
_NOT_OURS = ("PYTEST_CURRENT_TEST", "KMP_", "TORCHINDUCTOR_", "TRITON_", "PYTORCH_NVML_", "CRC32C_SW_MODE")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Snapshot:
    """Process-wide state at one moment. `changes()` says what differs now, `restore()` mends it."""

    cwd: str
    environ: dict[str, str]
    signals: dict[int, Any]
    threads: set[threading.Thread]
    torch: dict[str, Any]
    process_group: bool

    @classmethod
    def take(cls) -> "Snapshot":
        return cls(
            cwd=os.getcwd(),
            environ=dict(os.environ),
            signals={number: signal.getsignal(number) for number in _SIGNALS},
            threads=set(threading.enumerate()),
            torch=_torch_state(),
            process_group=_process_group(),
        )

    def changes(self) -> list[str]:
        now = Snapshot.take()
        found = [
            *_differences("environment variable", _ours(self.environ), _ours(now.environ)),
            *_differences("handler of signal", self.signals, now.signals),
            *_differences("torch", self.torch, now.torch),
        ]
        if now.cwd != self.cwd:
            found.append(f"cwd: {self.cwd!r} became {now.cwd!r}")
        if now.process_group and not self.process_group:
            found.append("a process group is left; call torch.distributed.destroy_process_group()")
        for thread in now.threads - self.threads:
            thread.join(0 if thread.daemon else 1)
            if thread.is_alive() and not thread.daemon:
                found.append(f"thread {thread.name!r} still runs")
        return found

    def restore(self) -> None:
        """Put back what can be put back, so that one careless test does not fail the next."""
        os.chdir(self.cwd)
        if dict(os.environ) != self.environ:
            kept = {key: value for key, value in os.environ.items() if key.startswith(_NOT_OURS)}
            os.environ.clear()
            os.environ.update({**self.environ, **kept})
        for number, handler in self.signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if self.torch:
            _restore_torch(self.torch)
        if _process_group() and not self.process_group:
            sys.modules["torch.distributed"].destroy_process_group()


def _ours(environ: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith(_NOT_OURS)}


def _differences(what: str, before: dict[Any, Any], now: dict[Any, Any]) -> list[str]:
    if not before:  # torch was not imported yet
        return []
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{what} {name}: {before.get(name)!r} became {now.get(name)!r}" for name in names]


def _torch_state() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "grad": torch.is_grad_enabled(),
    }


def _restore_torch(state: dict[str, Any]) -> None:
    torch = sys.modules["torch"]
    now = _torch_state()
    changed = {name for name in state if state[name] != now[name]}
    if "default dtype" in changed:
        torch.set_default_dtype(state["default dtype"])
    if "default device" in changed:
        torch.set_default_device(state["default device"])
    if "threads" in changed:
        torch.set_num_threads(state["threads"])
    if changed & {"deterministic", "deterministic warn_only"}:
        # Not called without need: it imports the compiler, two seconds.
        torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["deterministic warn_only"])
    torch.backends.cudnn.benchmark = state["cudnn.benchmark"]
    torch.backends.cudnn.deterministic = state["cudnn.deterministic"]
    torch.set_grad_enabled(state["grad"])


def _process_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


@contextmanager
def isolated() -> Iterator[None]:
    """Leave nothing of what is done inside behind: no drawn numbers, no settings."""
    before, drawn = Snapshot.take(), host_rng_state()
    try:
        yield
    finally:
        set_host_rng_state(drawn)
        before.restore()
