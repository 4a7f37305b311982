"""What frameworks say of their users' mistakes: `python benchmarks/mistakes.py [--show NAME]`.

Each is made in a process of its own, in each framework in which it can be made (`wrong/`). Counted is whether
anything is said of it, by an error or a warning; whether that holds the value that was given, and what would
mend it, or the right name; how many lines the message has; and how many frames the traceback. A framework
that is not installed is left out, with a line that says so. It fails if stratrun accepts one in silence.
"""

import argparse
import importlib
import io
import json
import logging
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wrong import FRAMEWORKS, MISTAKES, Wrong

SECONDS = 60
NUMBERS = re.compile(r"\d+|tmp\w+")
LINES = 6
PACKAGES = {"ignite": "pytorch-ignite"}


@dataclass
class Told:
    """What one framework says of one mistake."""

    kind: str
    """The class of the error; ``warning``, ``hangs``, or empty where nothing is said."""
    text: str
    frames: int = 0
    heard: list[str] = field(default_factory=list)
    """All lines of the output, without their numbers."""

    @property
    def said(self) -> bool:
        return self.kind not in ("", "hangs")

    def has(self, words: tuple[str, ...]) -> bool:
        return self.said and any(word.lower() in self.text.lower() for word in words)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", metavar="NAME", help="what each framework says of one mistake, or of all")
    parser.add_argument("--json", metavar="FILE", help="where figures go")
    given = parser.parse_args()
    names = list(MISTAKES) if given.show in (None, "all") else [given.show]
    found: dict[str, dict[str, Told]] = {}
    for framework in FRAMEWORKS:
        try:
            found[framework] = dict(of_framework(framework, names))
        except ImportError as error:
            print(f"{framework} is left out: {error}")
    if given.show:
        for name in names:
            show(name, found)
        return
    print(head(found))
    print(summary(found))
    print(f"\n{table(found)}")
    if given.json:
        path = Path(given.json)
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({key: {n: asdict(t) for n, t in of.items()} for key, of in found.items()}, indent=1)
        )
    silent = [name for name, told in found["stratrun"].items() if not told.said]
    sys.exit(f"stratrun accepts {', '.join(silent)}" if silent else 0)


def of_framework(framework: str, names: list[str]) -> Iterator[tuple[str, Told]]:
    # The framework once; each mistake in a process that is forked from it.
    module = importlib.import_module(f"wrong.in_{framework}")
    usual = in_a_process(module.right, ())
    for name in names:
        act = getattr(module, name, None)
        if act is not None:
            told, wrong = in_a_process(act, usual.heard), MISTAKES[name]
            if told.kind == "warning" and not (told.has(wrong.value) or told.has(wrong.mend)):
                told.kind = ""  # it speaks of something else
            yield name, told


def in_a_process(act: Callable[[Path], object], usual: Collection[str]) -> Told:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        signal.alarm(SECONDS)
        told = asdict(made(act, usual))
        with os.fdopen(write, "w") as stream:
            json.dump(told, stream)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return Told(**json.loads(text)) if text else Told("hangs", f"nothing within {SECONDS} s")


def made(act: Callable[[Path], object], usual: Collection[str]) -> Told:
    """Make a mistake, and take down what is said of it: an error, or what is not said without one."""
    heard, kind, text, frames = io.StringIO(), "", "", 0
    handler = logging.StreamHandler(heard)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    out, err = sys.stdout, sys.stderr
    warnings.simplefilter("default")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.stdout, sys.stderr = heard, heard
        try:
            act(Path(folder))
        except BaseException as error:
            kind, frames = type(error).__name__, len(traceback.extract_tb(error.__traceback__)) - 1
            text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        finally:
            sys.stdout, sys.stderr = out, err
            os.chdir("/")
    lines = [one for one in heard.getvalue().splitlines() if one.strip()]
    if not kind:
        text = "\n".join(one for one in lines if NUMBERS.sub("", one) not in usual)
        kind = "warning" if text else ""
    return Told(kind, text, max(frames, 0), [NUMBERS.sub("", one) for one in lines])


def summary(found: dict[str, dict[str, Told]]) -> str:
    columns = (
        "mistakes",
        "told",
        "value",
        "mend",
        "both, in at most 6 lines",
        "accepted in silence",
        "frames",
    )
    rows = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for framework, of in found.items():
        number = len(of)
        said = [(one, MISTAKES[name]) for name, one in of.items() if one.said]
        value = [one for one, wrong in said if one.has(wrong.value)]
        mend = [one for one, wrong in said if one.has(wrong.mend)]
        whole = [one for one in value if one in mend and len(one.text.splitlines()) <= LINES]
        frames = [one.frames for one, _ in said if one.kind != "warning"]
        figures = [f"{len(part) / number:.0%}" for part in (said, value, mend, whole)]
        silent = number - len(said)
        median = f"{statistics.median(frames):.0f}" if frames else ""
        rows.append(f"| {framework} | {number} | {' | '.join(figures)} | {silent} | {median} |")
    return "\n".join(rows)


def table(found: dict[str, dict[str, Told]]) -> str:
    """Mistake by mistake: what its user reads."""
    rows = [f"| mistake | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for name, wrong in MISTAKES.items():
        cells = [in_words(of[name], wrong) if name in of else "" for of in found.values()]
        rows.append(f"| {wrong.what} | {' | '.join(cells)} |")
    return "\n".join(rows)


def in_words(told: Told, wrong: Wrong) -> str:
    if not told.said:
        return "hangs" if told.kind == "hangs" else "**nothing**"
    value, mend = told.has(wrong.value), told.has(wrong.mend)
    words = "value and mend" if value and mend else "value" if value else "mend" if mend else "neither"
    return f"{words}, as a warning" if told.kind == "warning" else words


def head(found: dict[str, Any]) -> str:
    def of(framework: str) -> str:
        package = PACKAGES.get(framework, framework)
        try:
            return f"{framework} {version(package)}"
        except PackageNotFoundError:
            return framework

    return f"Python {platform.python_version()}, torch {version('torch')}, {', '.join(map(of, found))}\n"


def show(name: str, found: dict[str, dict[str, Told]]) -> None:
    for framework, of in found.items():
        if name in of:
            told = of[name]
            print(f"--- {name}, {framework}: {in_words(told, MISTAKES[name])} ({told.frames} frames)")
            print(f"{told.kind}: {told.text}")


if __name__ == "__main__":
    main()
