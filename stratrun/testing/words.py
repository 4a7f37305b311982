"""Words that a loop or a hook never has to say: what they stand for is other layers' business."""

import ast
import inspect
import re
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

from stratrun.testing.report import NotChecked, Wrong

_ONCE = "it runs on every process alike: values go to runner.log(), files are written by loggers"
_MEAN = "runner.engine.mean() and collect() put together what processes have"
_WHERE = "batches arrive where the model is; make tensors with like= or new_ methods of others"
_FORMAT = "the precision does this around each step"
_MODEL = "runner.model is the user's model itself, however it is trained"
_PARTS = "ask runner, or the verbs of runner.engine"

WORDS = {
    **dict.fromkeys(("rank", "ranks", "world"), _ONCE),
    **dict.fromkeys(("barrier", "collective", "collectives", "allreduce", "allgather", "broadcast"), _MEAN),
    **dict.fromkeys(("device", "devices", "cuda", "mps"), _WHERE),
    **dict.fromkeys(("autocast", "scaler"), _FORMAT),
    **dict.fromkeys(("ddp", "fsdp", "dtensor", "distributed", "unwrap", "wrapped"), _MODEL),
}
"""By part of a name; with what is there instead."""
_NAMES = {
    **dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter"), _MEAN),
    "no_sync": "give update= and divisor= to runner.engine.train_step()",
}
_MODULES = {
    "torch.distributed": _MEAN,
    "torch.cuda": _WHERE,
    "torch.amp": _FORMAT,
    **{
        f"stratrun.{layer}": _PARTS
        for layer in ("engine", "strategies", "accelerators", "precision", "distributed", "checkpoint")
    },
}


def check_words(kind: type, allow: Collection[str] = ()) -> str:
    """Look for words of the layers below in the source of a class, and of the bases that came with it.

    Args:
        allow: Words that mean something else there, such as ``rank`` in a metric of rankings.
    """
    found: list[str] = []
    classes = [cls for cls in kind.__mro__ if cls is not object and _is_user_s(cls, kind)]
    for cls in classes:
        try:
            lines, first = inspect.getsourcelines(cls)
        except (OSError, TypeError) as error:
            raise NotChecked(f"the source of {cls.__name__} is not at hand") from error
        tree = ast.parse(textwrap.dedent("".join(lines)))
        imported = _imports(inspect.getmodule(cls))
        for line, word, instead in _low(tree, imported, allow):
            found.append(f"{cls.__name__}, line {first + line - 1}: {word!r}; {instead}")
    if found:
        raise Wrong("\n".join(dict.fromkeys(found)))
    return f"{', '.join(cls.__name__ for cls in classes)}"


def _is_user_s(cls: type, kind: type) -> bool:
    """Bases from this package are checked by its own tests, unless they are what is asked about."""
    return cls is kind or cls.__module__.partition(".")[0] not in ("stratrun", "builtins", "abc", "typing")


def _low(tree: ast.AST, imported: dict[str, str], allow: Collection[str]) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        for name in _names_in(node):
            line = getattr(node, "lineno", 1)
            path = imported.get(name, name) if isinstance(node, ast.Name) else name
            for module, instead in _MODULES.items():
                if path == module or path.startswith(f"{module}."):
                    yield line, path, instead
            if name in _NAMES and name not in allow:
                yield line, name, _NAMES[name]
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
            for word in sorted(words & WORDS.keys() - set(allow)):
                yield line, name, WORDS[word]
        if isinstance(node, ast.Attribute) and node.attr == "module" and "module" not in allow:
            yield node.lineno, ".module", _MODEL


def _names_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.arg | ast.keyword):
        yield node.arg or ""
    elif isinstance(node, ast.FunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        home = getattr(node, "module", None)
        yield from (f"{home}.{alias.name}" if home else alias.name for alias in node.names)


def _imports(module: Any) -> dict[str, str]:
    """What the names that a module has imported stand for."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return {}
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names
