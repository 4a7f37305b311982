"""Where the files of one start of a run lie."""

import re
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from itertools import count
from pathlib import Path
from typing import Any

from stratrun.errors import ConfigError


class RunFolder:
    """A new folder ``<work_dir>/runs/<date>-<time>``.

    `path` is always a local folder, because the libraries that write log files know no other.
    For a work dir elsewhere it is a temporary one that `upload` copies there.
    """

    def __init__(self, work_dir: str, **storage_options: Any) -> None:
        """Make the folder.

        Raises:
            ConfigError: it cannot be made.
        """
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self._upload: threading.Thread | None = None
        self._failure: Exception | None = None
        self._sent: dict[Path, tuple[int, int]] = {}
        shown = re.sub(r"//[^/@]*@", "//***@", work_dir)
        try:
            fs, root = url_to_fs(work_dir, **storage_options)
            self._fs: Any = None if isinstance(fs, LocalFileSystem) else fs
            self.path: Path
            self._remote, self.path = self._make(fs, f"{root.rstrip('/')}/runs")
        except Exception as error:
            raise ConfigError(
                f"work_dir={shown!r} cannot be written: {error}; choose another with work_dir=..."
            ) from error
        self.url: str = f"{shown.rstrip('/')}/runs/{self._remote.rpartition('/')[2]}"

    def _make(self, fs: Any, parent: str) -> tuple[str, Path]:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in count():
            target = f"{parent}/{stamp}-{attempt}" if attempt else f"{parent}/{stamp}"
            if self._fs is None:
                try:
                    Path(target).mkdir(parents=True)
                except FileExistsError:
                    if not Path(target).is_dir():
                        raise
                    continue
                return target, Path(target)
            if not fs.exists(target):
                fs.makedirs(target, exist_ok=True)
                break
        local = Path(tempfile.mkdtemp(prefix="stratrun-"))
        self._forget = weakref.finalize(self, shutil.rmtree, local, ignore_errors=True)
        return target, local

    def upload(self, *, wait: bool = False) -> None:
        """Copy what has changed to where it belongs, in the background.

        A copy that is still under way makes this one wait for its next turn. A failure ends no
        training: it is a warning, and the local files are kept.
        """
        if self._fs is None:
            return
        if self._upload is not None and self._upload.is_alive():
            if not wait:
                return
            self._upload.join()
        self._warn()
        self._upload = threading.Thread(target=self._send, name="stratrun-log-upload", daemon=True)
        self._upload.start()
        if wait:
            self._upload.join()
            self._warn()

    def _send(self) -> None:
        try:
            for path in sorted(self.path.rglob("*")):
                if not path.is_file():
                    continue
                stat = path.stat()
                seen = (stat.st_mtime_ns, stat.st_size)
                if self._sent.get(path) == seen:
                    continue
                target = f"{self._remote}/{path.relative_to(self.path).as_posix()}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(path), target)
                self._sent[path] = seen
        except Exception as error:
            self._failure = error

    def _warn(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            self._forget.detach()
            warnings.warn(
                f"log files could not be copied to {self.url}: {failure}; they are kept in {self.path}",
                stacklevel=2,
            )
