"""Local ranks that stay up between calls.

Two ranks cost half a second instead of five, as they are forked with torch already imported. Calls and
results travel over pipes, with the cwd, the environment and the warning filters of the caller. The first rank
that fails ends the call and spoils the group; the next call starts a new one. A call that takes too long is
an error that shows where each rank stands.
"""

import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, Self

from stratrun.testing.rank_server import Call, RankError, RankServer, Reply

CALL_LIMIT = 45.0  # above the group's timeout, so that a hung exchange reports itself
SERVER = RankServer()
"""From what the ranks of this program are forked, unless others say so."""


class RemoteTraceback(Exception):
    """The cause of an error that was raised in a rank: the text of its traceback there."""


@dataclass
class Ranks:
    """`ranks(function, *args, **kwargs)` calls a module-level function on each rank at the same time.

    Returns the results by rank; what fails on a rank is raised here. With `joined` the default process group
    (gloo) is up in each rank; without it only the variables that torchrun sets are there. What the ranks
    printed is in `output` after a call. ``with Ranks(2) as ranks:`` ends them after the block.

    Args:
        server: From what the ranks are forked; one for the whole program by default.
        limit: Seconds that a call may take.
    """

    world_size: int
    joined: bool = True
    limit: float = CALL_LIMIT
    server: RankServer = SERVER
    output: list[str] = field(default_factory=list)
    _pids: list[int] = field(default_factory=list)
    _pipes: list[Connection] = field(default_factory=list)
    _folder: Path | None = None
    _origin: int = 0

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        replies = self._replies(function, args, kwargs)
        if any(reply.spent for reply in replies):
            self.stop()
        return [reply.value for reply in replies]

    def outcomes(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """Like a call that waits for all ranks though some fail: an error stands in the place of a value.

        Ranks of its own serve it, and end after it.
        """
        with Ranks(self.world_size, self.joined, self.limit, self.server) as others:
            replies = others._replies(function, args, kwargs, patient=True)
        return [reply.value if reply.error is None else reply.error for reply in replies]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _replies(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        patient: bool = False,
    ) -> list[Reply]:
        work = _dumps(function, args, kwargs)
        call = Call(work, list(sys.path), os.getcwd(), dict(os.environ), list(warnings.filters))
        replies = self._exchange(call, patient)
        if any(reply.unknown for reply in replies):
            # What a notebook or another test file has defined since is known to ranks that are forked now.
            self.stop()
            self.server.stop()
            replies = self._exchange(call, patient)
        for rank, reply in enumerate(replies):
            if not patient:
                self._raise_error_of(rank, reply)
        return replies

    def _exchange(self, call: Call, patient: bool) -> list[Reply]:
        message = pickle.dumps(call)
        if self._pids and self._origin != self.server.pid:
            self._forget()  # they ended with the server that they were forked from
        if not self._pids:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send_bytes(message)
            replies = self._collect(patient)
        except BaseException:
            self.stop()
            raise
        self._read_output()
        return replies

    def stop(self) -> None:
        """End the ranks. The next call starts new ones."""
        if not self._pids:
            return
        if self._origin == self.server.pid:
            self.server.kill(self._pids)  # those that `_fail_dead` has ended are passed over
        self._read_output()
        self._forget()

    def _forget(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._pids, self._pipes = [], []
        assert self._folder is not None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="stratrun-ranks-"))
        self._pids, self._pipes = self.server.fork(self.world_size, self._folder, self.joined)
        self._origin = self.server.pid

    def _collect(self, patient: bool) -> list[Reply]:
        replies: dict[int, Reply] = {}
        deadline = time.monotonic() + self.limit
        while len(replies) < self.world_size:
            waiting = [rank for rank in range(self.world_size) if rank not in replies]
            ready = wait([self._pipes[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            if not ready and not patient:
                self._fail_hung(waiting)
            for rank in waiting:
                if not ready:
                    replies[rank] = Reply(error=RankError(f"rank {rank}: no answer in {self.limit:g} s"))
                elif self._pipes[rank] in ready:
                    replies[rank] = self._receive(rank, patient)
        return [replies[rank] for rank in range(self.world_size)]

    def _receive(self, rank: int, patient: bool) -> Reply:
        try:
            reply = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionError) as error:
            if patient:
                return Reply(error=RankError(f"rank {rank} of {self.world_size} died"))
            self._fail_dead(rank, error)
        assert isinstance(reply, Reply)
        if not reply.unknown and not patient:
            self._raise_error_of(rank, reply)  # others may wait for it in vain
        return reply

    def _raise_error_of(self, rank: int, reply: Reply) -> None:
        if reply.error is not None:
            self._read_output()
            cause = RemoteTraceback(f"on rank {rank} of {self.world_size}\n{reply.trace}{self._said()}")
            raise reply.error from cause

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


_SHARED: dict[int, Ranks] = {}


def shared_ranks(world_size: int) -> Ranks:
    """Ranks that all checks of this program use, and that end with it."""
    return _SHARED.setdefault(world_size, Ranks(world_size))


def _dumps(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"{name} and its arguments cannot be sent to the ranks; give a module-level function "
            f"and plain values ({error})"
        ) from error
