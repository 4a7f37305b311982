"""The mistakes of tests/mistakes, and what each prints. As a program, it makes them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock


def told(root: Path) -> list[dict[str, str]]:
    """What each mistake is, and what it prints.

    In a process of its own, as they register parts and set variables.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the mistakes could not be made:\n{done.stderr}")
    found: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def pages(found: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    from reference import rst

    sections: dict[str, list[dict[str, str]]] = {}
    for one in found:
        sections.setdefault(one["about"], []).append(one)
    pieces = [
        rst.title("Mistakes, and what is printed"),
        f"These {len(found)} mistakes are made by the tests, which hold each message to say what was given, "
        "why it will not do and what to do. Messages are shown as they were when this page was built.",
    ]
    for about, ones in sections.items():
        rows = [[one["mistake"], f"{_linked(one['error'])}\n\n{rst.block(one['message'])}"] for one in ones]
        pieces += [rst.title(about, "-"), rst.table(["mistake", "what is printed"], rows, "30 70", "stack")]
    yield "mistakes", rst.page(*pieces)


def _linked(name: str) -> str:
    """The name of an error, which may be one of Python's own."""
    from stratrun import errors

    return f":py:exc:`~stratrun.errors.{name}`" if hasattr(errors, name) else f"``{name}``"


def _make(mistake: Any) -> dict[str, str]:
    from tests.mistakes.mistake import message

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        if mistake.prepare is not None:
            mistake.prepare(folder)
        with mock.patch.dict(os.environ, mistake.environ):
            try:
                mistake.act(folder)
                kind, text = "", "nothing"
            except Exception as error:
                kind, text = type(error).__name__, message(error)
    sentence = mistake.name.replace("_", " ")
    return {
        "about": mistake.act.__module__.rpartition("about_")[2].replace("_", " ").capitalize(),
        "mistake": sentence[0].upper() + sentence[1:],
        "error": kind,
        "message": re.sub(rf"{re.escape(os.path.realpath(name))}/?|{re.escape(name)}/?", "", text),
    }


def _main() -> None:
    from tests.mistakes import cases

    with contextlib.redirect_stdout(io.StringIO()):
        found = [_make(one) for one in cases.MISTAKES]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules are not meant by their short names
    _main()
