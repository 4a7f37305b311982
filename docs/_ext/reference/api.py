"""The public names, a page for each part of the package that they come from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import stratrun
from reference import rst
from stratrun import engine, testing
from stratrun.registry import Registry

# In the order in which a reader meets them; a home that is not named comes last, under its own name.
TITLES = {
    "runner": "Runner",
    "config": "Configs",
    "loops": "Loops",
    "hooks": "Hooks",
    "context": "What loops and hooks see",
    "engine": "Engine: the verbs for loops",
    "state": "Counters",
    "evaluation": "Evaluation",
    "predictions": "Predictions",
    "inference": "Inference",
    "loggers": "Loggers",
    "strategies": "Strategies",
    "accelerators": "Accelerators",
    "precision": "Precision",
    "environment": "Environment",
    "registry": "Registries",
    "testing": "Testing parts of your own",
}


def pages() -> Iterator[tuple[str, str]]:
    homes = _homes()
    order = [*(home for home in TITLES if home in homes), *sorted(homes.keys() - TITLES.keys())]
    rows = [
        [f":doc:`{TITLES.get(home, home)} <api/{home}>`", ", ".join(_link(path) for path in homes[home])]
        for home in order
    ]
    yield (
        "api",
        rst.page(
            rst.title("Python API"),
            "``from stratrun import ...``: the names that stay, or are told of in the changelog when they "
            "change. Importing the package imports nothing else; a name is looked up when it is first used. "
            "`stratrun.testing` is imported as such. Exceptions are in the :doc:`list of errors <errors>`, "
            "what a config may name among the :doc:`registered parts <parts>`.",
            rst.table(["page", "names"], rows, "30 70"),
            ".. toctree::\n   :hidden:\n\n" + "".join(f"   api/{home}\n" for home in order),
        ),
    )
    for home in order:
        body = [_documented(path) for path in homes[home]]
        yield f"api/{home}", rst.page(rst.title(TITLES.get(home, home)), *body)


def exported() -> dict[str, Any]:
    """What can be imported by name, errors apart: by its path."""
    names = {f"stratrun.{name}": getattr(stratrun, name) for name in stratrun.__all__}
    names |= {f"stratrun.testing.{name}": getattr(testing, name) for name in testing.__all__}
    names["stratrun.engine.Engine"] = engine.Engine
    return {path: value for path, value in names.items() if not path.endswith("Error")}


def _homes() -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for path, value in exported().items():
        module = "stratrun.registry" if isinstance(value, Registry) else value.__module__
        homes.setdefault(module.split(".")[1], []).append(path)
    return homes


def _link(path: str) -> str:
    return f":py:obj:`{path.rpartition('.')[2]} <{path}>`"


def _documented(path: str) -> str:
    value = exported()[path]
    if isinstance(value, Registry):
        kind = value.kind
        return (
            f".. py:data:: {path}\n   :type: Registry\n\n"
            f"   The registry of :doc:`{kind.replace('_', ' ')} </reference/parts/{kind}>`.\n"
        )
    if inspect.isclass(value):
        return f".. autoclass:: {path}\n   :members:\n   :show-inheritance:\n"
    return f".. autofunction:: {path}\n"
