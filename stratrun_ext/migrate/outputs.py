"""Where a migration writes to."""

from pathlib import Path

from stratrun.errors import ConfigError


def refuse_existing(out: Path, *, force: bool) -> None:
    """
    Raises:
        ConfigError: there is something at `out`, which nobody said may be replaced.
    """
    if out.exists() and not force:
        raise ConfigError(f"--out {out} is there already; give another name, or --force to replace it")
