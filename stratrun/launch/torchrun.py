"""torchrun on this machine, alone or as one of several."""

from stratrun.distributed import torchrun
from stratrun.errors import ConfigError
from stratrun.launch.base import Job, Launcher, Start
from stratrun.registry import LAUNCHERS

PORT = 29500


@LAUNCHERS.register_module("torchrun")
class TorchrunLauncher(Launcher):
    """torchrun on this machine; of several machines, each is given the same command."""

    def start(self, job: Job) -> Start:
        nodes = job.nodes or 1
        if nodes > 1 and job.rendezvous is None:
            raise ConfigError(
                f"--nodes {nodes} needs --rendezvous HOST[:PORT], one machine that all others reach; "
                "give each of them the same command"
            )
        if nodes == 1 and job.rendezvous is None:
            # A port that is free, so that several jobs of one machine do not meet.
            meeting = ["--standalone"]
        else:
            meeting = [f"--nnodes={nodes}", *_meeting(job)]
        options = [*meeting, f"--nproc_per_node={job.per_node or 'gpu'}", f"--max_restarts={job.restarts}"]
        grace = {} if job.grace is None else {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{job.grace:g}"}
        return Start((*torchrun(), *options, *job.target), grace)


def _meeting(job: Job) -> list[str]:
    host, colon, port = (job.rendezvous or "").rpartition(":")
    if not colon:
        host, port = port, str(PORT)
    if not host or not port.isdecimal():
        raise ConfigError(f"--rendezvous {job.rendezvous!r} is no HOST or HOST:PORT, such as node0:{PORT}")
    rank = [] if job.node is None else [f"--node_rank={job.node}"]
    # The same on all machines by default, as they are given the same command.
    run_id = job.run_id or "stratrun"
    return ["--rdzv_backend=c10d", f"--rdzv_endpoint={host}:{port}", f"--rdzv_id={run_id}", *rank]
