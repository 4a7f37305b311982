"""A Python file as a config. It is code: it runs, and may name and build anything."""

import ast
import hashlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from stratrun.config.placed import BASE, DELETE, Path, placed
from stratrun.errors import ConfigError

_KEPT = (BASE, DELETE)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read(text: str, name: str) -> Any:
    """Run a file and keep what it assigns to public names at its top level.

    What it imports, defines or loops over is not kept, nor is a name that starts with an
    underscore.

    Raises:
        ConfigError: it is no Python, or it raises an exception.
    """
    try:
        tree = ast.parse(text, filename=name)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = f"{name}:{line}" if line else name
        raise ConfigError(f"{place}: not Python: {getattr(error, 'msg', error)}") from error
    lines = _lines(tree)
    values = _run(text, name)
    kept = {
        key: value
        for key, value in values.items()
        if (key,) in lines and not isinstance(value, ModuleType) and (key in _KEPT or key[:1] != "_")
    }
    return placed(kept, lambda path: _place(path, lines, name))


def _run(text: str, name: str) -> dict[str, Any]:
    # A module of its own, so that classes defined in the file can be pickled and inspected.
    digest = hashlib.sha256(os.path.abspath(name).encode()).hexdigest()[:8]
    module = ModuleType(f"stratrun_config_{digest}")
    module.__file__ = name
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        line = _failing_line(error, name)
        raise ConfigError(f"{name}{line}: {type(error).__name__}: {error}") from error
    return module.__dict__


def _failing_line(error: Exception, name: str) -> str:
    traceback, line = error.__traceback__, ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == name:
            line = f":{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line


def _place(path: Path, lines: dict[Path, int], name: str) -> str | None:
    """The line of the key; where a function made the value, that of what it was assigned to."""
    while path and path not in lines:
        path = path[:-1]
    return f"{name}:{lines[path]}" if path else None


def _lines(tree: ast.Module) -> dict[Path, int]:
    lines: dict[Path, int] = {}
    for statement in _statements(tree.body):
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                _note(target, statement.value, lines)
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
            _note(statement.target, statement.value, lines)
    return lines


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of the module itself, those inside its `if`, `for`, `with` and `try` too."""
    for statement in body:
        yield statement
        if isinstance(statement, _SCOPES):
            continue
        for _, field in ast.iter_fields(statement):
            for inner in field if isinstance(field, list) else ():
                if isinstance(inner, ast.stmt):
                    yield from _statements([inner])
                elif isinstance(inner, ast.ExceptHandler | ast.match_case):
                    yield from _statements(inner.body)


def _note(target: ast.expr, value: ast.expr | None, lines: dict[Path, int]) -> None:
    if isinstance(target, ast.Tuple | ast.List):
        for one in target.elts:
            _note(one, None, lines)
    elif isinstance(target, ast.Name):
        path: Path = (target.id,)
        for known in [known for known in lines if known[:1] == path]:
            del lines[known]
        lines[path] = target.lineno
        _note_value(value, path, lines)
    elif isinstance(target, ast.Subscript | ast.Attribute) and (path := _target_path(target)):
        lines[path] = target.lineno
        _note_value(value, path, lines)


def _target_path(target: ast.expr) -> Path:
    """``("optimizer", "lr")`` for ``optimizer["lr"]``; nothing for what cannot be told."""
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        inner = _target_path(target.value)
        key = target.slice.value
        return (*inner, key) if inner and isinstance(key, str | int) else ()
    return ()


def _note_value(value: ast.expr | None, path: Path, lines: dict[Path, int]) -> None:
    if isinstance(value, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
        pairs = [(k, v) for k, v in zip(keys, value.values, strict=True) if isinstance(k, str | int)]
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
        pairs = [(word.arg, word.value) for word in value.keywords if word.arg]
    elif isinstance(value, ast.List | ast.Tuple):
        for index, item in enumerate(value.elts):
            _note_value(item, (*path, index), lines)
        return
    else:
        return
    for key, item in pairs:
        lines[(*path, key)] = item.lineno
        _note_value(item, (*path, key), lines)
