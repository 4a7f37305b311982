"""How a run was started from a command line."""

import os
from dataclasses import dataclass

from stratrun.distributed import program_command

# What the next job decides anew.
_NOT_KEPT = ("load_from", "resume", "work_dir")


@dataclass(frozen=True, slots=True)
class Invocation:
    """The part of a command that another job of the same run needs too."""

    config: str
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def command(self, job: str, **settings: str) -> str:
        """The command for `job` of this run, to paste into a shell."""
        kept = [setting for setting in self.settings if setting.partition("=")[0] not in _NOT_KEPT]
        new = [f"{key}={value}" for key, value in settings.items()]
        words = [job, self.config, *kept, *new, *self.options]
        return program_command(words, int(os.environ.get("LOCAL_WORLD_SIZE", "0")))
