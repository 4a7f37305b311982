"""`python -m tests.mistakes [word]` prints what each mistake tells its user, to be read."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

from stratrun import connector
from stratrun.runner import start
from tests.mistakes import cases
from tests.mistakes.mistake import Mistake, message


def show(mistake: Mistake) -> None:
    silent = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if mistake.prepare is not None:
            with contextlib.redirect_stdout(silent):
                mistake.prepare(Path(folder))
        before = len(list(Path(folder).rglob("*")))
        told, late = "SILENTLY ACCEPTED", False
        with (
            mock.patch.dict(os.environ, mistake.environ),
            mock.patch.object(start, "connect", wraps=connector.connect) as connect,
            contextlib.redirect_stdout(silent),
        ):
            try:
                mistake.act(Path(folder))
            except Exception as error:
                told = f"{type(error).__name__}: {message(error)}"
            late = connect.called
        wrote = len(list(Path(folder).rglob("*"))) != before
        lacking = [word for word in mistake.words if word not in told]
        print(f"--- {mistake.name}{'  (connected)' if late else ''}{'  (wrote)' if wrote else ''}\n{told}")
        for flag in (
            lacking and f"LACKS {lacking}",
            ((late and mistake.shows == "refused") or (wrote and mistake.shows != "running")) and "TOO LATE",
            not told.startswith(f"{mistake.error.__name__}:") and f"EXPECTED {mistake.error.__name__}",
        ):
            if flag:
                print(f"!!! {flag}")


for one in cases.MISTAKES:
    if not sys.argv[1:] or sys.argv[1] in one.name:
        show(one)
