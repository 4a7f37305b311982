"""``stratrun predict CONFIG --inputs ...``: raw inputs from files, and a result a line."""

from __future__ import annotations

import glob
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stratrun.config import Config
from stratrun.errors import ConfigError, DataError, nearest

LINES = (".txt", ".jsonl")
STDIN = "-"


class Raw(NamedTuple):
    """One input, and what it is called beside its result."""

    name: str
    value: Any


def check(words: Sequence[str]) -> list[str]:
    """The files that the words name, in their order; those of a pattern sorted.

    Raises:
        ConfigError: there is no such file, or nothing fits a pattern.
    """
    files: list[str] = []
    for word in words:
        if word == STDIN or "://" in word or os.path.isfile(word):
            files.append(word)
        elif glob.has_magic(word):
            found = sorted(one for one in glob.glob(word, recursive=True) if os.path.isfile(one))
            if not found:
                raise ConfigError(f"--inputs {word}: no file fits this pattern")
            files += found
        else:
            raise ConfigError(f"--inputs {word}: {_why_no_file(word)}")
    return files


def check_out(out: str, files: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: results cannot be written there, or would take the place of an input.
    """
    if "://" in out:
        return
    if os.path.isdir(out):
        raise ConfigError(
            f"--out {out}: this is a folder; name a file, such as '{Path(out, 'results.jsonl')}'"
        )
    if any(os.path.exists(out) and os.path.isfile(file) and os.path.samefile(out, file) for file in files):
        raise ConfigError(f"--out {out}: this is one of the inputs, whose place results would take")


def read(files: Iterable[str]) -> Iterator[Raw]:
    """Lines of a ``.txt`` and of standard input as texts, of a ``.jsonl`` as what they say; else the path.

    Raises:
        DataError: a line is no JSON.
    """
    for file in files:
        if file == STDIN:
            yield from _lines(sys.stdin.buffer, file, str)
        elif "://" not in file and file.endswith(LINES):
            with open(file, "rb") as stream:
                yield from _lines(stream, file, json.loads if file.endswith(".jsonl") else str)
        else:
            yield Raw(file, file)


def predict(config: Config, files: Sequence[str], out: str, access: Mapping[str, Any]) -> int:
    """Predict on every input, and write a line for each as its result comes. Returns how many there are.

    Args:
        access: Options of the file system that `out` is in.
    """
    from stratrun.data.json_lines import json_line
    from stratrun.inference import Inferencer

    options = {key: config[key] for key in ("accelerator",) if config.get(key) is not None}
    names: list[str] = []

    def values() -> Iterator[Any]:
        for raw in read(files):
            names.append(raw.name)
            yield raw.value

    with Inferencer(config=config, **options) as inferencer, replaced(out, access) as stream:
        count = 0
        for result in inferencer.stream(values()):
            stream.write(f"{json_line({'input': names.pop(0), 'prediction': result})}\n".encode())
            count += 1
    return count


@contextmanager
def replaced(out: str, access: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A file that appears, or replaces an older one, when it is whole."""
    from stratrun.storage import Folder

    target = Folder(out, **access)
    folder = target.parent
    place = folder.local_path()
    if place is None:
        with folder.open(target.name, "wb") as stream:
            yield stream
        return
    beside = f".{target.name[:200]}.{secrets.token_hex(4)}.part"
    try:
        with folder.open(beside, "wb") as stream:
            yield stream
        os.replace(place / beside, place / target.name)
        folder.sync()
    except BaseException:
        folder.remove(beside)
        raise


def _lines(stream: BinaryIO, file: str, parse: Callable[[str], Any]) -> Iterator[Raw]:
    for number, row in enumerate(stream, 1):
        name = f"{file}:{number}"
        try:
            text = row.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if text or parse is str:
                yield Raw(name, parse(text))
        except ValueError as error:
            raise DataError(f"--inputs {name} cannot be read: {error}") from error


def _why_no_file(word: str) -> str:
    path = Path(word)
    if path.is_dir():
        return f"this is a folder; name files, such as '{path}/*'"
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}"
    if "=" in word:
        return "there is no such file; settings come before --inputs"
    beside = [
        str(path.parent / one.name) if path.parent != Path() else one.name for one in path.parent.iterdir()
    ]
    return f"there is no such file; {nearest(word, beside)}"
