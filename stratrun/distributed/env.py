"""What the launcher said about this process."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stratrun.errors import ConfigError

_REQUIRED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessEnv:
    """Where this process sits in the job. Defaults describe a lone process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    launched: bool = False
    """Whether a launcher started it, be it as the only rank."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "ProcessEnv":
        """Read torchrun's variables; none of them set means a lone process.

        Raises:
            ConfigError: some are set and some are not, or one is not a number.
        """
        given = {name: environ[name] for name in _REQUIRED if name in environ}
        if not given:
            return cls()
        missing = [name for name in _REQUIRED if name not in given]
        if missing:
            raise ConfigError(
                f"{', '.join(given)} set but {', '.join(missing)} not: the launcher's variables are "
                "incomplete; start with torchrun, or unset them to run alone"
            )
        bad = {name: value for name, value in given.items() if not value.isdecimal()}
        if bad:
            name, value = next(iter(bad.items()))
            raise ConfigError(f"{name}={value!r} is not a number; start with torchrun, or unset it")
        rank, local_rank, world_size = (int(given[name]) for name in _REQUIRED)
        if rank >= world_size:
            raise ConfigError(f"RANK={rank} does not fit WORLD_SIZE={world_size}: ranks count from 0")
        return cls(rank, local_rank, world_size, launched=True)


def torchrun_command(processes: int = 2) -> str:
    """The command that starts this very program, with these arguments, on several ranks of this machine."""
    return program_command(sys.argv[1:], processes)


def program_command(arguments: Sequence[str], processes: int = 0) -> str:
    """A command that starts this very program, as a shell in this folder understands it.

    Args:
        processes: How many torchrun is to start; 0 for the program alone.
    """
    program = sys.argv[0] if sys.argv and sys.argv[0] else "train.py"
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    is_ours = Path(program).name in ("stratrun", "stratrun.exe")
    if spec is not None:
        target = ["-m", spec.name.removesuffix(".__main__")]
    elif is_ours and processes:
        target = ["-m", "stratrun"]
    else:
        target = [_typed(Path(program)) if is_ours else os.path.relpath(program)]
    if processes:
        start = [*torchrun(), f"--nproc_per_node={processes}"]
    else:
        start = [] if is_ours and spec is None else [_typed(Path(sys.executable))]
    return shlex.join([*start, *target, *arguments])


def torchrun() -> list[str]:
    """How torchrun is called, the one of this interpreter."""
    beside = Path(sys.executable).with_name("torchrun")
    if beside.exists():
        return [_typed(beside)]
    return [_typed(Path(sys.executable)), "-m", "torch.distributed.run"]


def _typed(program: Path) -> str:
    """What to type for a program: its name where a shell finds it by that, else the shorter of its paths."""
    path = Path(os.path.abspath(program))
    if shutil.which(program.name) == str(path):
        return program.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
