"""What importing costs, each measured in fresh processes: `python benchmarks/import_time.py [runs]`."""

import statistics
import subprocess
import sys

STATEMENTS = {
    "nothing": "pass",
    "import stratrun": "import stratrun",
    "import torch": "import torch",
    "import torch, stratrun": "import torch, stratrun",
    "import torch; from stratrun import Runner": "import torch; from stratrun import Runner",
    "stratrun --help": "import sys; sys.argv = ['stratrun', '--help']; from stratrun.cli import main; main()",
}

TIMED = """
import contextlib, io, time
start = time.perf_counter()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    exec({statement!r})
print(time.perf_counter() - start)
"""


def seconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    found: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    # Interleaved, so that a slow moment of the machine falls on all of them.
    for _ in range(runs):
        for name, statement in STATEMENTS.items():
            found[name].append(seconds(statement))
    print(f"{'seconds, median of ' + str(runs):45}{'median':>8}{'min':>8}")
    for name, values in found.items():
        print(f"{name:45}{statistics.median(values):8.3f}{min(values):8.3f}")


if __name__ == "__main__":
    main()
