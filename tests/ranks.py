"""Local ranks that stay up between tests.

A server process is forked from pytest before the first test runs, while nothing has started threads
yet, and every rank is forked from the server: with torch already imported two ranks cost half a second
instead of five. Calls and results travel over pipes, with the cwd, the environment and the warning
filters of the test. The first rank that fails ends the call and spoils the group; the next call starts
a new one. A call that takes too long is an error that shows where each rank stands.
"""

import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

GROUP_TIMEOUT = 20.0
CALL_LIMIT = 45.0  # above the group's timeout, so that a hung collective reports itself, below pytest's
_PRELOAD = (
    "torch.distributed",
    "torch.nn.parallel",
    "torch.distributed.checkpoint.state_dict",
    "torch.optim.lr_scheduler",
    "torch.utils.data",
    "torch._dynamo",
)


class RankError(Exception):
    """A rank died, hung, or raised something that cannot be sent to the parent."""


class RemoteTraceback(Exception):
    """The cause of an error that was raised in a rank: the text of its traceback there."""


@dataclass
class _Call:
    """One function call, with what a rank needs to see the world as the test does."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cwd: str
    environ: dict[str, str]
    filters: list[Any]


@dataclass
class _Reply:
    value: Any = None
    error: BaseException | None = None
    trace: str = ""


class RankServer:
    """The process from which ranks are forked. One for a session; start it before any test runs."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Fork the server. Once it runs, further calls do nothing."""
        if self._pid:
            return
        ours, theirs = socket.socketpair()
        pid = _fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        self._pid, self._socket = pid, ours

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
        if self._pid:
            assert self._socket is not None
            self._socket.close()
            os.waitpid(self._pid, 0)
            self._pid, self._socket = 0, None

    def _send(self, command: Any) -> None:
        assert self._socket is not None
        self._socket.send(pickle.dumps(command))


@dataclass
class Ranks:
    """`ranks(function, *args, **kwargs)` calls a module-level function on each rank at the same time.

    Returns the results by rank. With `joined` the default process group (gloo) is up in each rank; without it
    only the variables that torchrun sets are there. What the ranks printed is in `output` after a call.
    """

    server: RankServer
    world_size: int
    joined: bool = True
    limit: float = CALL_LIMIT
    output: list[str] = field(default_factory=list)
    _pids: list[int] = field(default_factory=list)
    _pipes: list[Connection] = field(default_factory=list)
    _folder: Path | None = None

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        call = _Call(function, args, kwargs, os.getcwd(), dict(os.environ), list(warnings.filters))
        message = _dumps(call)
        if not self._pids:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send_bytes(message)
            replies = self._collect()
        except BaseException:
            self.stop()
            raise
        self._read_output()
        return [reply.value for reply in replies]

    def stop(self) -> None:
        """End the ranks. The next call starts new ones."""
        if not self._pids:
            return
        pids, self._pids = self._pids, []
        self.server.kill(pids)  # those that `_fail_dead` has ended are passed over
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
        self._read_output()
        assert self._folder is not None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stratrun-ranks-"))
        self._pids, self._pipes = self.server.fork(self.world_size, self._folder, self.joined)

    def _collect(self) -> list[_Reply]:
        replies: dict[int, _Reply] = {}
        deadline = time.monotonic() + self.limit
        while len(replies) < self.world_size:
            waiting = [rank for rank in range(self.world_size) if rank not in replies]
            ready = wait([self._pipes[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._fail_hung(waiting)
            for rank in waiting:
                if self._pipes[rank] in ready:
                    replies[rank] = self._receive(rank)
        return [replies[rank] for rank in range(self.world_size)]

    def _receive(self, rank: int) -> _Reply:
        try:
            reply = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionError) as error:
            self._fail_dead(rank, error)
        if reply.error is not None:
            self._read_output()
            cause = RemoteTraceback(f"on rank {rank} of {self.world_size}\n{reply.trace}{self._said()}")
            raise reply.error from cause
        assert isinstance(reply, _Reply)
        return reply

    def _fail_dead(self, rank: int, error: Exception) -> NoReturn:
        code = self.server.kill(self._pids)[rank]
        self._read_output()
        raise RankError(f"rank {rank} of {self.world_size} died, exit code {code}{self._said()}") from error

    def _fail_hung(self, waiting: list[int]) -> NoReturn:
        for rank in waiting:
            os.kill(self._pids[rank], signal.SIGUSR1)  # faulthandler writes the stacks to the rank's output
        time.sleep(0.5)
        self._read_output()
        names = ", ".join(map(str, waiting))
        raise RankError(f"rank {names} of {self.world_size}: no answer in {self.limit:g} s{self._said()}")

    def _read_output(self) -> None:
        if self._folder is not None and self._folder.exists():
            names = [self._folder / f"rank-{rank}.txt" for rank in range(self.world_size)]
            self.output = [name.read_text(errors="replace") if name.exists() else "" for name in names]

    def _said(self) -> str:
        return "".join(f"\n--- output of rank {i}\n{text}" for i, text in enumerate(self.output) if text)


def _dumps(call: _Call) -> bytes:
    try:
        return pickle.dumps(call)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = getattr(call.function, "__qualname__", repr(call.function))
        raise TypeError(
            f"{name} and its arguments cannot be sent to the ranks; give a module-level function "
            f"and plain values ({error})"
        ) from error


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
        os.setsid()  # Ctrl-C is for pytest; it ends the ranks itself
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
    import importlib

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
    code = 1
    try:
        output = folder / f"rank-{variables['RANK']}.txt"
        _redirect(output)
        os.environ.update(variables)
        join_error = _try_join(folder) if joined else None
        while True:
            message = pipe.recv_bytes()
            os.truncate(output, 0)
            pipe.send_bytes(_pack(join_error or _answer(message, variables)))
    except (EOFError, ConnectionError):
        code = 0  # the parent is gone
    except BaseException:
        traceback.print_exc()
    finally:
        # No interpreter shutdown: it would run pytest's own atexit functions a second time.
        os._exit(code)


def _redirect(output: Path) -> None:
    import faulthandler

    fd = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, sys.stderr)


def _try_join(folder: Path) -> _Reply | None:
    from datetime import timedelta

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
        return _Reply(error=error, trace=traceback.format_exc())
    return None


def _answer(message: bytes, variables: dict[str, str]) -> _Reply:
    import torch

    from tests.leaks import Snapshot

    before = Snapshot.take()
    try:
        call: _Call = pickle.loads(message)
        os.environ.clear()
        os.environ.update({**call.environ, **variables})
        os.chdir(call.cwd)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filters[:] = call.filters
            return _Reply(value=call.function(*call.args, **call.kwargs))
    except BaseException as error:
        return _Reply(error=error, trace=traceback.format_exc())
    finally:
        before.restore()


def _pack(reply: _Reply) -> bytes:
    try:
        message = pickle.dumps(reply)
        pickle.loads(message)  # an exception with an own constructor may fail only here
        return message
    except Exception as error:
        what = type(reply.error or reply.value).__name__
        trace = reply.trace or traceback.format_exc()
        failure = RankError(f"{reply.error!r}" if reply.error else f"a {what} cannot be sent back: {error}")
        return pickle.dumps(_Reply(error=failure, trace=trace))
