"""Python that starts with torch imported: the same programs without the three seconds that a start costs.

`Warm.folder` holds `python`, `stratrun` and `torchrun`. Each hands its arguments, folder, environment and
open files to a server, which forks a process for it that runs the program and ends as an interpreter does; it
passes signals on, and ends as that process did. What those start with `sys.executable` starts warm too.

For tests of what programs do. How one starts, and what it imports for that, must be tested with a real one.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
PRELOAD = (
    "numpy",
    "torch.distributed.launcher.api",
    "torch.distributed.elastic.multiprocessing",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint.default_planner",
    "torch._dynamo",
    "stratrun.cli.main",
    "stratrun.runner.runner",
)
PROGRAMS = {"python": [], "stratrun": ["-m", "stratrun"], "torchrun": ["-m", "torch.distributed.run"]}
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words = {words} + sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps(dict(words=words, cwd=os.getcwd(), environ=dict(os.environ))).encode()
socket.send_fds(server, [b"%12d" % len(said)], [0, 1, 2])
server.sendall(said)
answers = server.makefile("r")
pid = int(answers.readline())
def pass_on(number, frame):
    os.kill(pid, number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, pass_on)
code = int(answers.readline() or 70)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Warm:
    """The server and the programs that ask it. `stop` ends it, and what still runs for a program."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stratrun-warm-"))
        address = str(self.folder / "socket")
        for name, words in PROGRAMS.items():
            program = self.folder / name
            program.write_text(CLIENT.format(python=sys.executable, words=words, address=address))
            program.chmod(0o755)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen(64)  # programs may ask before the server has imported all
        with listening:
            self._server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listening.fileno()), str(self.folder)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )

    def stop(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        shutil.rmtree(self.folder)


# What follows runs in the server and in what is forked from it.


def serve(listening: socket.socket, folder: Path) -> None:
    """Fork a process for each program that asks, until the parent closes its end."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # else each end takes seconds, to look through all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([0, listening], [], [])
        if 0 in ready:
            return
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            look_after(asking, folder)
        asking.close()


def look_after(asking: socket.socket, folder: Path) -> NoReturn:
    """Run the program in a process of its own, and tell how it ended. It is killed with who asks."""
    try:
        length, files, _, _ = socket.recv_fds(asking, 12, 3)
        said = json.loads(asking.makefile("rb").read(int(length)))
        pid = os.fork()
        if pid == 0:
            asking.close()
            be_python(files, folder, **said)
        for file in (*files, 0, 1, 2):
            os.close(file)  # the program's own: who reads from it waits for its end
        asking.sendall(b"%d\n" % pid)
        watched = os.pidfd_open(pid)
        ready, _, _ = select.select([watched, asking], [], [])
        if watched not in ready:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    except OSError:
        pass  # the program is gone
    finally:
        os._exit(0)


def be_python(
    files: list[int], folder: Path, words: list[str], cwd: str, environ: dict[str, str]
) -> NoReturn:
    """What `python WORDS` does, the end of the interpreter included."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.executable = str(folder / "python")
    sys.orig_argv = [sys.executable, *words]
    set_up(environ)
    code: Any = 0
    try:
        run(words, environ)
    except SystemExit as stop:
        code = stop.code or 0
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    ctypes.pythonapi.Py_Exit(code)
    os._exit(99)


def set_up(environ: dict[str, str]) -> None:
    """What libraries read or draw when they are imported."""
    import numpy
    import torch

    numpy.random.seed()
    torch.set_num_threads(int(environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


def run(words: list[str], environ: dict[str, str]) -> None:
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    own = set(os.environ.get("PYTHONPATH", "").split(os.pathsep)) | {str(ROOT)}
    installed = [place for place in sys.path if place not in own]
    given = [place for place in environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    kind, rest = words[0], words[1:]
    first = "" if kind == "-c" else os.getcwd() if kind == "-m" else str(Path(kind).resolve().parent)
    # Where an installation for development has it, if not in the same place.
    sys.path[:] = [first, *given, str(ROOT), *installed]
    importlib.invalidate_caches()
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif kind.startswith("-"):
        raise SystemExit(f"{kind}: a warm start takes no options of python but -u, -m and -c")
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
