"""What is installed, and which state of a checkout it is."""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import stratrun as package

_OPTIONAL = (
    *("numpy", "torchvision", "torchaudio", "torchdata", "torchmetrics", "triton", "nvidia-ml-py"),
    *("tensorboard", "tensorboardX", "mlflow", "mlflow-skinny", "wandb", "rich", "plotly", "matplotlib"),
    *("fsspec", "s3fs", "gcsfs", "adlfs", "safetensors", "PyYAML", "psutil", "pillow", "scikit-learn"),
)
_BUILT_FOR = ("torchvision", "torchaudio", "xformers", "torchtext")
"""Packages whose compiled parts go with one version of torch."""
_PINNED = re.compile(r"torch\s*\(?==\s*([\w.]+)")


def stratrun() -> dict[str, Any]:
    folder = Path(package.__file__).parent
    found: dict[str, Any] = {"version": package.__version__, "folder": str(folder)}
    commits = {"commit": commit_of(folder.parent), "commit_of_working_folder": commit_of(Path.cwd())}
    return found | {name: commit for name, commit in commits.items() if commit is not None}


def installed() -> dict[str, Any]:
    found = {name: version_of(name) for name in _OPTIONAL}
    return {name: number for name, number in found.items() if number is not None}


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def wanted_torch() -> dict[str, str]:
    """Which version of torch packages were built for, of those that say so."""
    found = {}
    for name in _BUILT_FOR:
        if version_of(name) is None:
            continue
        pins = [pin[1] for one in requires(name) or () if (pin := _PINNED.match(one))]
        if pins:
            found[name] = pins[0]
    return found


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in a folder or one above it; read without git, which takes longer."""
    for place in (folder, *folder.parents):
        git = place / ".git"
        try:
            if git.is_file():  # of a further working tree
                git = place / git.read_text().partition(":")[2].strip()
            if git.is_dir():
                return _head(git)
        except OSError:
            return None
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    shared = git / "commondir"
    roots = [git, git / shared.read_text().strip()] if shared.is_file() else [git]
    for root in roots:
        if (root / name).is_file():
            return (root / name).read_text().strip()
        if (root / "packed-refs").is_file():
            for line in (root / "packed-refs").read_text().splitlines():
                commit, _, ref = line.partition(" ")
                if ref == name:
                    return commit
    return None
