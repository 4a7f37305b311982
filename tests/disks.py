"""What a process does to a local folder, operation by operation: to count, to cut short, to lose."""

import builtins
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from stratrun.storage import local

PAGE = 4096


class Operation(NamedTuple):
    """A change that a process is about to make."""

    name: str
    path: str
    start: int = 0
    data: bytes = b""
    target: str = ""
    direct: bool = False


Observer = Callable[[Operation], None]


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Tell of every operation of this process on local folders before it is done. It may raise, or kill.

    A write is two operations, so that between them half of it is there.
    """
    saved = {name: getattr(os, name) for name in ("open", "pwrite", "link", "rename", *_BY_PATH, *_BY_HANDLE)}
    for name, function in saved.items():
        setattr(os, name, _watched(name, function, observer))
    local.open = _opening(observer)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del local.open  # type: ignore[attr-defined]
        for name, function in saved.items():
            setattr(os, name, function)


_BY_PATH = ("mkdir", "unlink", "rmdir", "replace", "truncate")
_BY_HANDLE = ("fsync", "fdatasync", "ftruncate")


def _watched(name: str, function: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    if name in _BY_HANDLE:

        def by_handle(handle: int, *args: Any) -> Any:
            observer(Operation(name, _path(handle)))
            return function(handle, *args)

        return by_handle
    if name in _BY_PATH:

        def by_path(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            observer(Operation(name, _path(path, dir_fd)))
            return function(path, *args, dir_fd=dir_fd, **options)

        return by_path
    special = {"open": _creating, "pwrite": _writing, "rename": _naming, "link": _naming}
    return special[name](name, function, observer)


def _creating(name: str, function: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        if flags & os.O_CREAT:
            observer(Operation(name, _path(path, dir_fd)))
        elif flags & local._NAMELESS == local._NAMELESS:
            observer(Operation("nameless", _path(path, dir_fd)))
        return function(path, flags, mode, dir_fd=dir_fd)

    return call


def _writing(name: str, function: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    def call(handle: int, data: Any, offset: int) -> Any:
        view, direct = memoryview(data).cast("B"), local._is_direct(handle)
        unit = PAGE if direct else 1
        half = len(view) // 2 // unit * unit
        for start, part in ((0, view[:half]), (half, view[half:])):
            observer(Operation(name, _path(handle), offset + start, bytes(part), direct=direct))
            if part and function(handle, part, offset + start) != len(part):
                raise AssertionError("a short write, which this is not made for")
        return len(view)

    return call


def _naming(name: str, function: Callable[..., Any], observer: Observer) -> Callable[..., Any]:
    def call(old: str, new: Any, **options: Any) -> Any:
        observer(Operation(name, os.readlink(old) if name == "link" else _path(old), target=_path(new)))
        return function(old, new, **options)

    return call


def _path(path: Any, dir_fd: int | None = None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    if dir_fd is not None:
        return f"{_path(dir_fd)}/{os.fspath(path)}"
    return str(os.path.abspath(path))


def _opening(observer: Observer) -> Callable[..., Any]:
    def opening(path: str, mode: str = "rb") -> Any:
        if "w" not in mode:
            return builtins.open(path, mode)
        observer(Operation("open", _path(path)))
        return _HalvedFile(builtins.open(path, mode), observer)

    return opening


class _HalvedFile:
    """Writes in two steps."""

    def __init__(self, file: Any, observer: Observer) -> None:
        self._file = file
        self._observer = observer

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for part in (view[: len(view) // 2], view[len(view) // 2 :]):
            self._observer(Operation("write", self._file.name, self._file.tell(), bytes(part)))
            self._file.write(part)
            self._file.flush()
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_HalvedFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Counted:
    """An observer that does something else in place of one operation."""

    def __init__(self, fatal: int = 0, strike: Callable[[Operation], None] | None = None) -> None:
        """`fatal` counts from 1."""
        self.seen: list[Operation] = []
        self._fatal = fatal
        self._strike = strike or killed
        self._one = threading.Lock()

    def __call__(self, operation: Operation) -> None:
        with self._one:
            self.seen.append(operation)
            fatal = len(self.seen) == self._fatal
        if fatal:
            self._strike(operation)


def killed(_: Operation) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process. Returns its exit code, or minus the signal it died of."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # a child that hangs is not to outlive the test
            torch.set_num_threads(1)  # the threads of a pool are not forked, and waited for all the same
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# What a loss of power leaves. A node is a file or a folder as the system has it in memory, with what of it
# is safe on the disk.


@dataclass(eq=False)
class _File:
    data: bytes = b""
    safe: bytes = b""


@dataclass(eq=False)
class _Folder:
    names: dict[str, Any] = field(default_factory=dict)
    safe: dict[str, Any] = field(default_factory=dict)


Tree = dict[str, bytes | None]
"""Files with their content, and folders, by path."""


class Disk:
    """Follows operations on a folder, and tells what would be there had the power failed then."""

    def __init__(self, root: Path) -> None:
        """What lies in `root` now is safe."""
        self._root = str(root)
        self._top = _node_of(root)
        self._nameless: dict[str, _File] = {}

    def apply(self, operation: Operation) -> None:
        name, path = operation.name, operation.path
        if not f"{path}/".startswith(f"{self._root}/") or name == "nameless":
            return
        if name == "fsync":
            self._sync(path)
            return
        folder, last = self._place(path)
        if name == "mkdir":
            folder.names.setdefault(last, _Folder())
        elif name == "open":
            folder.names.setdefault(last, _File()).data = b""
        elif name in ("write", "pwrite"):
            node = folder.names.get(last) or self._nameless.setdefault(path, _File())
            before = node.data[: operation.start].ljust(operation.start, b"\0")
            node.data = before + operation.data + node.data[operation.start + len(operation.data) :]
        elif name in ("unlink", "rmdir"):
            del folder.names[last]
        else:
            assert name in ("rename", "link"), f"what {name} does is not known here"
            other, new = self._place(operation.target)
            other.names[new] = (self._nameless if name == "link" else folder.names).pop(
                path if name == "link" else last
            )

    def _sync(self, path: str) -> None:
        node = self._nameless.get(path) or self._find(path)
        if isinstance(node, _File):
            node.safe = node.data
        else:
            node.safe = dict(node.names)

    def losses(self, seed: int) -> Iterator[Tree]:
        """Names that were not synced are there or not, and data that was not is there, missing or zero."""
        ways = ("lost", "kept"), ("lost", "zero", "kept")
        for names in ways[0]:
            for data in ways[1]:
                yield self._after(lambda names=names: names, lambda data=data: data)  # type: ignore[misc]
        draw = random.Random(seed)
        for _ in range(4):
            yield self._after(lambda: draw.choice(ways[0]), lambda: draw.choice(ways[1]))

    def _after(self, of_name: Callable[[], str], of_data: Callable[[], str]) -> Tree:
        tree: Tree = {}

        def walk(folder: _Folder, path: str) -> None:
            for name in sorted({*folder.names, *folder.safe}):
                node = (folder.safe if of_name() == "lost" else folder.names).get(name)
                place = f"{path}{name}"
                if isinstance(node, _Folder):
                    tree[place] = None
                    walk(node, f"{place}/")
                elif node is not None:
                    zero = node.safe if node.safe == node.data else bytes(len(node.data))
                    tree[place] = {"lost": node.safe, "zero": zero, "kept": node.data}[of_data()]

        walk(self._top, "")
        return tree

    def _find(self, path: str) -> Any:
        node = self._top
        for part in filter(None, path.removeprefix(self._root).split("/")):
            node = node.names[part]
        return node

    def _place(self, path: str) -> tuple[_Folder, str]:
        above, _, last = path.rpartition("/")
        return self._find(above), last


def _node_of(path: Path) -> Any:
    if not path.is_dir():
        return _File(path.read_bytes(), path.read_bytes())
    names = {one.name: _node_of(one) for one in path.iterdir()}
    return _Folder(names, dict(names))


def build(tree: Tree, root: Path) -> None:
    root.mkdir()
    for path, data in tree.items():  # folders come before what is in them
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
