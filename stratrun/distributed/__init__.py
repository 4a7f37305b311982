from stratrun.distributed.collectives import Collectives
from stratrun.distributed.data_ranks import DataRanks
from stratrun.distributed.env import ProcessEnv, program_command, torchrun, torchrun_command
from stratrun.distributed.process_group import (
    check_backend,
    control_group,
    gradient_group,
    join,
    known_backends,
    leave,
    message_board,
    shared,
)

__all__ = [
    "Collectives",
    "DataRanks",
    "ProcessEnv",
    "check_backend",
    "control_group",
    "gradient_group",
    "join",
    "known_backends",
    "leave",
    "message_board",
    "program_command",
    "shared",
    "torchrun",
    "torchrun_command",
]
