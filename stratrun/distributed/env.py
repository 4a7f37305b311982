"""What the launcher said about this process."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

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
    """The command that starts this very program on several ranks of this machine."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    program = sys.argv[0] if sys.argv and sys.argv[0] else "train.py"
    name = os.path.basename(program)
    if spec is not None or name in ("stratrun", "stratrun.exe"):
        module = spec.name.removesuffix(".__main__") if spec is not None else "stratrun"
        target = ["-m", module]
    else:
        target = [os.path.relpath(program) if os.path.isabs(program) else program]
    return " ".join(["torchrun", f"--nproc_per_node={processes}", *target, *sys.argv[1:]])
