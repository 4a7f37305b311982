"""Whether a run is training in a work dir: told by a lock, which ends with its process however that ends."""

import errno
import fcntl
import os
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress

from stratrun.storage import Folder

_NAME = ".running"


class InUse:
    """The mark of a run in its work dir. On local disk, network mounts that have locks among them."""

    def __init__(self) -> None:
        self._path = ""
        self._close: Callable[[], object] | None = None

    def set(self, work_dir: Folder) -> str | None:
        """Leave the mark, unless another process does; returns which, and where its mark is."""
        place = work_dir.local_path()
        self.clear()
        if place is None:
            return None
        self._path = str(place / _NAME)
        try:
            while self._close is None:
                holder = self._take()
                if holder is not None:
                    return f"{holder} ({self._path})"
        except OSError:
            pass  # there are no locks
        return None

    def clear(self) -> None:
        """Remove it, if there is one of this run."""
        close, self._close = self._close, None
        if close is not None:
            with suppress(OSError):
                os.unlink(self._path)
            close()

    def _take(self) -> str | None:
        # Held for reading alone, as a file open for writing keeps a disk from being unmounted or
        # made read-only. Who comes between the two is refused by the second.
        for flags, kind in ((os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX), (os.O_RDONLY, fcntl.LOCK_SH)):
            handle = os.open(self._path, flags, 0o666)
            try:
                # This kind of lock goes with the process, and not with the last of its forks.
                fcntl.lockf(handle, kind | fcntl.LOCK_NB)
                if kind == fcntl.LOCK_EX:
                    os.truncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                elif os.path.samestat(os.fstat(handle), os.stat(self._path)):
                    self._close = weakref.finalize(self, os.close, handle)
            except FileNotFoundError:
                return None  # who had it has removed it just now
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                return os.read(handle, 200).decode(errors="replace") or "another process"
            finally:
                if self._close is None:
                    os.close(handle)
        return None
