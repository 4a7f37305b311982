"""What the user reads when a job fails, and the exit code that a script sees."""

import hashlib
import os
import re
import sys
import traceback
from pathlib import Path
from signal import SIGINT, Signals

from stratrun.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    PeerError,
    Stopped,
    StorageError,
    StratrunError,
)

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130
# Of our own errors those that no other command line would have spared the user.
_FAILURES = (CheckpointError, PeerError, StorageError)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PACKAGE = str(Path(__file__).parents[1]) + os.sep


def report(error: BaseException, hint: str = "--resume goes on from the newest checkpoint") -> int:
    """Say on stderr what went wrong. Returns the exit code.

    Args:
        hint: How to go on after Ctrl-C, or another signal.
    """
    text, code = _told(error, hint)
    if _is_first_to_say(text):
        sys.stderr.write(f"{_who(error)}{text}")
    return code


def _told(error: BaseException, hint: str) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return f"stratrun: interrupted{'; ' if hint else ''}{hint}\n", INTERRUPTED
    if isinstance(error, Stopped):
        how = "interrupted" if error.signal == SIGINT else f"stopped by {Signals(error.signal).name}"
        return f"stratrun: {how}{'; ' if hint else ''}{hint}\n", 128 + error.signal
    whole = os.environ.get("STRATRUN_FULL_TRACEBACK", "") not in ("", "0")
    final = isinstance(error, _FAILURES) and not isinstance(error, CheckpointNotFoundError)
    code = MISTAKE if isinstance(error, StratrunError) and not final else FAILURE
    if not isinstance(error, StratrunError) or whole:
        return _traceback(error, whole), code
    notes = "".join(f"  {note}\n" for note in getattr(error, "__notes__", ()))
    return visible(f"stratrun: error: {error}\n{notes}"), code


def visible(text: str) -> str:
    """Text with control characters written out: a config of somebody else's is not to steer the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _traceback(error: BaseException, whole: bool) -> str:
    """The traceback, without the frames of this package unless there are no others."""
    shown = traceback.TracebackException.from_exception(error)
    hidden = 0 if whole else _hide_own_frames(shown)
    text = "".join(shown.format())
    if hidden:
        text += f"({hidden} frames of stratrun are left out; STRATRUN_FULL_TRACEBACK=1 shows them)\n"
    return text


def _hide_own_frames(shown: traceback.TracebackException) -> int:
    hidden = 0
    for one in (shown, shown.__cause__, shown.__context__):
        if one is None:
            continue
        foreign = [frame for frame in one.stack if not frame.filename.startswith(_PACKAGE)]
        if foreign:
            hidden += len(one.stack) - len(foreign)
            one.stack[:] = foreign
    return hidden


def _who(error: BaseException) -> str:
    """Where a traceback is from, if it may be from several processes. Our own errors say it themselves."""
    ours = isinstance(error, StratrunError | KeyboardInterrupt | Stopped)
    if ours or os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    return f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}:\n"


def _is_first_to_say(text: str) -> bool:
    """Whether no other process that torchrun started here has said the same.

    Told by a file in the folder that torchrun made for what its processes have to report.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not own:
        return True
    said = Path(own).parents[1] / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
