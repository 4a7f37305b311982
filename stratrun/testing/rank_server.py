"""The process from which ranks are forked, and what runs in a rank.

The server is forked from the program that calls the ranks (by pytest before the first test, while nothing has
started threads yet), and every rank is forked from the server.
"""

import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, cast

from stratrun.errors import StratrunError
from stratrun.testing.process_state import Snapshot

GROUP_TIMEOUT = 20.0
_PRELOAD = (
    "torch.distributed",
    "torch.nn.parallel",
    "torch.distributed.checkpoint.state_dict",
    "torch.optim.lr_scheduler",
    "torch.utils.data",
    "torch._dynamo",
)


class RankError(StratrunError):
    """A rank died, hung, or raised something that cannot be sent to the parent."""


@dataclass
class Call:
    """One function call, with what a rank needs to see the world as the caller does."""

    work: bytes
    """Pickled: the function and its arguments, which may have to be imported from `path`."""
    path: list[str]
    cwd: str
    environ: dict[str, str]
    filters: list[Any]


@dataclass
class Reply:
    """What a rank answers.

    `spent`: the rank cannot be used again, its process group is gone. `unknown`: the server was forked before
    the function was defined.
    """

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    spent: bool = False
    unknown: bool = False


class RankServer:
    """The process from which ranks are forked. One for a program; start it before there are threads."""

    def __init__(self) -> None:
        self.pid: int = 0
        self._owner = 0
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Fork the server. Once it runs, further calls do nothing."""
        if self.pid and self._owner == os.getpid():
            return
        ours, theirs = socket.socketpair()
        pid = _fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        self.pid, self._socket, self._owner = pid, ours, os.getpid()

    def fork(self, world_size: int, folder: Path, joined: bool) -> tuple[list[int], list[Connection]]:
        """Start ranks; returns their process ids and the pipes to them."""
        self.start()
        self._send(("fork", world_size, str(folder), joined))
        assert self._socket is not None
        answer, fds, _, _ = socket.recv_fds(self._socket, 65536, world_size)
        return pickle.loads(answer), [Connection(fd) for fd in fds]

    def kill(self, pids: list[int]) -> list[int]:
        """End ranks, whatever they do; returns their exit codes, negative for a signal."""
        self._send(("kill", pids))
        assert self._socket is not None
        codes: list[int] = pickle.loads(self._socket.recv(65536))
        return codes

    def stop(self) -> None:
        if self.pid and self._owner == os.getpid():
            assert self._socket is not None
            self._socket.close()
            os.waitpid(self.pid, 0)
            self.pid, self._socket = 0, None

    def _send(self, command: Any) -> None:
        assert self._socket is not None
        self._socket.send(pickle.dumps(command))


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; those of the BLAS behind numpy are made to be forked.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# What follows runs in the server and in the ranks.


def _serve(commands: socket.socket) -> NoReturn:
    """Fork and end ranks as told, until the parent closes its end."""
    code = 1
    living: set[int] = set()
    try:
        os.setsid()  # Ctrl-C is for the program that calls; it ends the ranks itself
        _preload()
        while message := commands.recv(65536):
            verb, *details = pickle.loads(message)
            if verb == "fork":
                living |= _fork_ranks(commands, *details)
            else:
                codes = [_end(pid) for pid in details[0] if pid in living]
                living -= set(details[0])
                commands.send(pickle.dumps(codes))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for pid in living:
            _end(pid)
        os._exit(code)


def _preload() -> None:
    import torch

    torch.set_num_threads(1)
    for name in _PRELOAD:
        importlib.import_module(name)


def _end(pid: int) -> int:
    finished, status = os.waitpid(pid, os.WNOHANG)
    if not finished:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _fork_ranks(commands: socket.socket, world_size: int, folder: str, joined: bool) -> set[int]:
    pairs = [socket.socketpair() for _ in range(world_size)]
    variables = _rank_variables(world_size)
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            # A copy of another's end that stays open would hide the end of the parent from it.
            commands.close()
            for other, (parent, child) in enumerate(pairs):
                parent.close()
                if other != rank:
                    child.close()
            own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            _be_rank(Connection(pairs[rank][1].detach()), own, Path(folder), joined)
        pids.append(pid)
    socket.send_fds(commands, [pickle.dumps(pids)], [parent.fileno() for parent, _ in pairs])
    for pair in pairs:
        for end in pair:
            end.close()
    return set(pids)


def _rank_variables(world_size: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    variables = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return {**variables, "GLOO_SOCKET_IFNAME": loopback} if loopback else variables


def _be_rank(pipe: Connection, variables: dict[str, str], folder: Path, joined: bool) -> NoReturn:
    import torch.distributed as dist

    code = 1
    try:
        output = folder / f"rank-{variables['RANK']}.txt"
        _redirect(output)
        # A loader's worker that kept the pipe open would hide the death of this rank from the parent.
        os.register_at_fork(after_in_child=pipe.close)
        os.environ.update(variables)
        join_error = _try_join(folder) if joined else None
        while True:
            message = pipe.recv_bytes()
            os.truncate(output, 0)
            reply = join_error or _answer(message, variables)
            reply.spent = joined and not dist.is_initialized()
            pipe.send_bytes(_pack(reply))
    except (EOFError, ConnectionError):
        code = 0  # the parent is gone
    except BaseException:
        traceback.print_exc()
    finally:
        # No interpreter shutdown: it would run the caller's own atexit functions a second time.
        os._exit(code)


def _redirect(output: Path) -> None:
    fd = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, sys.stderr)


def _try_join(folder: Path) -> Reply | None:
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=GROUP_TIMEOUT),
        )
    except Exception as error:
        return Reply(error=error, trace=traceback.format_exc())
    return None


def _answer(message: bytes, variables: dict[str, str]) -> Reply:
    import torch

    before = Snapshot.take()
    _end_groups_left()
    try:
        call: Call = pickle.loads(message)
        sys.path[:] = call.path
        os.environ.clear()
        os.environ.update({**call.environ, **variables})
        os.chdir(call.cwd)
        try:
            function, args, kwargs = pickle.loads(call.work)
        except (AttributeError, ImportError) as error:
            return Reply(error=error, trace=traceback.format_exc(), unknown=True)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            cast(list[Any], warnings.filters)[:] = call.filters
            return Reply(value=function(*args, **kwargs))
    except BaseException as error:
        return Reply(error=error, trace=traceback.format_exc())
    finally:
        before.restore()


def _end_groups_left() -> None:
    """End the groups beside the default one that the last call left behind.

    Each has threads that wake a hundred times a second. Only now, when no rank uses them any more.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    # Nothing public lists them. Those of meshes stay: DTensor keeps what it found out for one mesh, with its
    # groups, for any that is equal.
    left = [
        group
        for group in dist.distributed_c10d._world.pg_map
        if group is not dist.group.WORLD and not group.group_desc.startswith("mesh")
    ]
    for group in left:
        dist.destroy_process_group(group)
    if left:
        del group
        left.clear()
        # Whatever made them may hold itself in a circle, and them with it.
        gc.collect()


def _pack(reply: Reply) -> bytes:
    try:
        message = pickle.dumps(reply)
        pickle.loads(message)  # an exception with an own constructor may fail only here
        return message
    except Exception as error:
        what = type(reply.error or reply.value).__name__
        trace = reply.trace or traceback.format_exc()
        failure = RankError(f"{reply.error!r}" if reply.error else f"a {what} cannot be sent back: {error}")
        return pickle.dumps(Reply(error=failure, trace=trace))
