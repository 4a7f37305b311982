"""The command ``stratrun``."""

import atexit
import os
import sys
from collections.abc import Sequence

from stratrun.cli.arguments import parse
from stratrun.cli.commands import named_in
from stratrun.cli.dispatch import command
from stratrun.cli.failures import report
from stratrun.errors import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says. Returns the exit code; a launched process ends here."""
    code = run(sys.argv[1:] if argv is None else argv)
    if "RANK" in os.environ:
        _end(code)
    return code


def run(argv: Sequence[str]) -> int:
    """Do what the command line says, and report what fails. Returns the exit code."""
    if argv and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    try:
        code = command(argv)
        if code is not None:
            return code
        arguments = parse(argv)
        # Only now: what it imports takes seconds.
        from stratrun.cli.job import do

        do(arguments)
    except (Exception, KeyboardInterrupt, Stopped) as error:
        return report(error) if named_in(list(argv)) is None else report(error, hint="")
    return 0


def _end(code: int) -> None:
    """Leave without the end of the interpreter.

    There gloo's threads abort the process now and then, and after a failure a thread that goes on would keep
    this process alive and the others waiting for it.
    """
    if code and "stratrun.distributed" in sys.modules:
        from stratrun.distributed import leave

        # Leaving a group is an exchange too, which the others may never come to.
        atexit.unregister(leave)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
