"""Measure anew what README.md tells, on a machine that rests: `python benchmarks/refresh.py [NAME ...]`.

Runs each benchmark that README.md has a place for, or those named, and puts what it prints there. Figures
go to benchmarks/results/NAME.json. What needs a GPU is left alone where there is none.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
PLACE = re.compile(r"<!-- (?P<name>\w+)(?P<options>[^>]*) -->\n.*?<!-- end -->", re.DOTALL)
NEED_GPU = ("gpu_step",)


def measured(name: str, options: list[str]) -> str:
    """What a benchmark prints; tables as they are, anything else in a block."""
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    command += ["--json", str(HERE / "results" / f"{name}.json")]
    print(" ".join(["$", *command[1:]]), flush=True)
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent).stdout
    print(said, flush=True)
    said = "\n".join(line.rstrip() for line in said.strip().splitlines())
    # A table begins after an empty line, or it is taken for text.
    said = re.sub(r"(^[^|\n].*)\n\|", r"\1\n\n|", said, flags=re.MULTILINE)
    return said if "|---" in said else f"```text\n{said}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [found["name"] for found in PLACE.finditer(README.read_text())]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    wanted = parser.parse_args().names
    for name in wanted:
        if name not in known:
            parser.error(f"README.md has no place for {name!r}; it has {', '.join(known)}")
    for name in wanted or known:
        if name in NEED_GPU and not torch.cuda.is_available():
            print(f"{name}: left alone, as there is no GPU here")
            continue
        text = README.read_text()
        place = next(found for found in PLACE.finditer(text) if found["name"] == name)
        head = f"<!-- {name}{place['options']} -->"
        body = f"{head}\n{measured(name, place['options'].split())}\n<!-- end -->"
        # At once, so that what was measured is kept when a later one fails.
        README.write_text(text[: place.start()] + body + text[place.end() :])


if __name__ == "__main__":
    main()
