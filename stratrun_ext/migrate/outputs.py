"""Where a migration writes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stratrun.errors import ConfigError


def refuse(source: Path, out: Path, *, force: bool) -> None:
    """
    Raises:
        ConfigError: there is no source, `out` is the source itself, or there is something that nobody said
            may be replaced.
    """
    if not source.is_file():
        raise ConfigError(f"there is no file {source} to migrate; give the path of one")
    if out.exists() and out.samefile(source):
        raise ConfigError(f"--out {out} is what is read; give another name")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file")
    if out.exists() and not force:
        raise ConfigError(f"--out {out} is there already; give another name, or --force to replace it")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder, and tell what cannot be written as a mistake of the user's."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error}; choose another place") from error
