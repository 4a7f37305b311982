"""Modules and files that the user has imported for what they register."""

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from stratrun.errors import ConfigError, nearest


def import_named(name: str) -> None:
    """Import ``package.module``, or a file, whose folder can then be imported from too.

    Raises:
        ConfigError: there is no such module or file, or its name is taken. What the code itself raises
            is not touched.
    """
    if name.endswith(".py") or os.sep in name:
        _import_file(Path(name))
        return
    # The console script, unlike `python -m`, does not look into the current folder.
    _look_into(Path.cwd())
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            raise
        beside = Path(f"{name}.py")
        hint = f"did you mean {str(beside)!r}?" if beside.is_file() else "a file is given with its ending .py"
        raise ConfigError(f"--import {name}: there is no module {missing!r}; {hint}") from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        found = sorted(str(one) for one in path.parent.glob("*.py"))
        hint = nearest(str(path), found) if found else f"no Python file is in {str(path.parent)!r}"
        raise ConfigError(f"--import {path}: there is no such file; {hint}")
    name, file = path.stem, str(path.resolve())
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == file:
        return
    if known is not None or name in sys.stdlib_module_names:
        raise ConfigError(f"--import {path}: {name!r} is the name of another module; rename the file")
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    # The workers of a loader may have to import it again, by its name.
    _look_into(path.resolve().parent)
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _look_into(folder: Path) -> None:
    """Last of all, so that no file there hides an installed module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
