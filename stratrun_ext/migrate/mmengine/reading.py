"""MMEngine's config files as data with the line of each value, without running them."""

import ast
import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratrun.config.formats import json, yaml
from stratrun.config.placed import BASE, PlacedDict, merge
from stratrun.errors import ConfigError, nearest
from stratrun_ext.migrate.mmengine.expressions import Expressions, NoValueError, Unknown

_MOST = 512 * 1024
_DEEPEST = 32
_FORMATS = (".py", ".json", ".yaml", ".yml")
_PLAIN = (
    "write one plain file of it: "
    "python -c \"from mmengine import Config; Config.fromfile({!r}).dump('plain.py')\""
)
_FROM_BASE = re.compile(r"\{\{\s*_base_\.([\w.]+)\s*\}\}")


@dataclass
class Read:
    """A config with all that it inherits."""

    tree: PlacedDict
    used: set[str] = field(default_factory=set)
    """Top-level names that other values are made of."""
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    """Places and texts of statements that only running the config would give a meaning."""


def read(path: str | Path) -> Read:
    """
    Raises:
        ConfigError: there is no such file, it is no config, or it inherits by importing Python.
    """
    found = Read(PlacedDict())
    found.tree = _load(Path(path), (), found)
    return found


def _load(path: Path, chain: tuple[Path, ...], found: Read) -> PlacedDict:
    if path.resolve() in chain:
        raise ConfigError(f"{BASE} of {path} goes in a circle")
    if len(chain) > _DEEPEST:
        raise ConfigError(f"{BASE} goes through more than {_DEEPEST} files, the last of them {path}")
    text, chain = _text(path), (*chain, path.resolve())
    if path.suffix == ".py":
        return _python(path, text, chain, found)
    own = (json.read if path.suffix == ".json" else yaml.read)(text, str(path))
    if not isinstance(own, PlacedDict):
        raise ConfigError(f"{path}: a config is a mapping of names to values")
    base = _bases(path, own.pop(BASE, []), chain, found)
    return merge(base, _filled_in(own, base, found))


def _text(path: Path) -> str:
    if path.suffix not in _FORMATS:
        raise ConfigError(
            f"{path}: a config of MMEngine ends in {', '.join(_FORMATS)}, its checkpoint in .pth or .pt"
        )
    if not path.is_file():
        beside = [one.name for one in path.parent.glob("*") if one.suffix in _FORMATS]
        raise ConfigError(f"no config {str(path)!r}; {nearest(path.name, beside)}")
    if path.stat().st_size > _MOST:
        raise ConfigError(f"config {str(path)!r} is larger than {_MOST // 1024} KiB")
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error


def _bases(path: Path, given: Any, chain: tuple[Path, ...], found: Read) -> PlacedDict:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise ConfigError(f"{path}: {BASE}={given!r} must be the name of a file, or a list of them")
    tree = PlacedDict()
    for name in names:
        if "::" in name:
            raise ConfigError(
                f"{path}: {BASE}={name!r} is in an installed package; " + _PLAIN.format(str(path))
            )
        tree = merge(tree, _load(path.parent / name, chain, found))
    return tree


def _python(path: Path, text: str, chain: tuple[Path, ...], found: Read) -> PlacedDict:
    try:
        module = ast.parse(text, str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: no Python: {error.msg}") from error
    given: Any = []
    for statement in module.body:
        _refuse_new_style(path, statement)
        if isinstance(statement, ast.Assign) and BASE in _targets(statement):
            given = Expressions({}, {}, lambda line: f"{path}:{line}", text).part(statement.value)
    base = _bases(path, given, chain, found)
    own = PlacedDict()
    expressions = Expressions(own, base, lambda line: f"{path}:{line}", text)
    for statement in module.body:
        _take(statement, own, expressions, found, path, text)
    found.used |= expressions.used
    return merge(base, _filled_in(own, base, found))


def _refuse_new_style(path: Path, statement: ast.stmt) -> None:
    calls = (
        [ast.unparse(one.context_expr) for one in statement.items] if isinstance(statement, ast.With) else []
    )
    if any(one.startswith("read_base") for one in calls):
        raise ConfigError(
            f"{path}:{statement.lineno}: read_base() inherits by importing Python, which is not run here; "
            + _PLAIN.format(str(path))
        )


def _targets(statement: ast.stmt) -> list[str]:
    """The names that a statement assigns to, if it does nothing else."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) else []


def _take(
    statement: ast.stmt, own: PlacedDict, known: Expressions, found: Read, path: Path, text: str
) -> None:
    """Note what a statement assigns, and that it is passed over if it does anything else."""
    names, place = _targets(statement), f"{path}:{statement.lineno}"
    if names and isinstance(statement, ast.Assign):
        value = None if BASE in names else known.part(statement.value)
        for name in names:
            if name != BASE:
                own[name], own.places[name] = value, place
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a text that stands for a comment
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        changed = ast.BinOp(ast.Name(statement.target.id, ast.Load()), statement.op, statement.value)
        own[statement.target.id] = known.part(ast.copy_location(changed, statement))
        own.places[statement.target.id] = place
        return
    if isinstance(statement, ast.Delete) and all(isinstance(one, ast.Name) for one in statement.targets):
        for one in statement.targets:
            own.pop(ast.unparse(one), None)
        return
    if isinstance(statement, ast.Assign) and _set_item(statement, own, known, place):
        return
    line = (ast.get_source_segment(text, statement) or "").partition("\n")[0]
    found.passed_over.append((place, line))


def _set_item(statement: ast.Assign, own: PlacedDict, known: Expressions, place: str) -> bool:
    """Do ``model['head']['classes'] = 5``; whether it was that."""
    target = statement.targets[0]
    if len(statement.targets) != 1 or not isinstance(target, ast.Subscript):
        return False
    try:
        whole, key = known.value(target.value), known.value(target.slice)
        # A copy, or a config could be put into itself.
        whole[key] = copy.deepcopy(known.part(statement.value))
    except (NoValueError, TypeError, IndexError):
        return False
    if isinstance(whole, PlacedDict):
        whole.places[key] = place
    return True


def _filled_in(value: Any, base: Mapping[str, Any], found: Read) -> Any:
    """The same with what ``{{_base_.x}}`` in texts stands for."""
    if isinstance(value, PlacedDict):
        made = PlacedDict({key: _filled_in(one, base, found) for key, one in value.items()})
        made.places.update(value.places)
        return made
    if isinstance(value, list | tuple):
        return type(value)(_filled_in(one, base, found) for one in value)
    if not isinstance(value, str) or "{{" not in value:
        return value
    whole = _FROM_BASE.fullmatch(value.strip())
    if whole is not None:
        return _of_base(whole[1], base, found)
    filled = _FROM_BASE.sub(lambda one: str(_of_base(one[1], base, found)), value)
    return Unknown(value) if "{{" in filled else filled


def _of_base(name: str, base: Mapping[str, Any], found: Read) -> Any:
    at: Any = base
    found.used.add(name.partition(".")[0])
    for step in name.split("."):
        if not isinstance(at, Mapping) or step not in at:
            return Unknown(f"{{{{_base_.{name}}}}}")
        at = at[step]
    return at
