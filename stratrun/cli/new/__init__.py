"""``stratrun new``: a folder with a small project, to be changed into one's own."""

from argparse import ArgumentParser, Namespace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote
from string import Template

from stratrun.errors import ConfigError

_RENAMED = {"gitignore": ".gitignore"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "It has a config, a data set and a model, tests, and a README that says how to run them."
    parser.add_argument("name", metavar="NAME", help="the folder; it must be empty, if it is there")


def run(given: Namespace) -> int:
    folder = Path(given.name)
    _check(folder)
    written = _write(files(__name__).joinpath("template"), folder, {"name": folder.resolve().name})
    print("\n".join(f"  {path}" for path in written))
    print(f"next: cd {quote(str(folder))} && stratrun train config.yaml --import parts.py")
    return 0


def _check(folder: Path) -> None:
    """
    Raises:
        ConfigError: nothing can be put there without touching what is there already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"the folder {str(folder)!r} is not empty; name one that is not there yet")
    blocked = next((one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()), None)
    if blocked is not None:
        raise ConfigError(f"{str(blocked)!r} is a file, so no folder can be made there; choose another name")


def _write(template: Traversable, folder: Path, words: dict[str, str]) -> list[Path]:
    """Make the files of a template, which end in ``.in``. Returns those made."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(template.iterdir(), key=lambda source: source.name):
        if source.is_dir():
            written += _write(source, folder / source.name, words)
        elif source.name.endswith(".in"):
            name = source.name.removesuffix(".in")
            path = folder / _RENAMED.get(name, name)
            path.write_text(Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
            written.append(path)
    return written
