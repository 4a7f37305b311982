"""What importing brings in: counted, since seconds depend on the machine."""

import json
import subprocess
import sys

COUNTED = """
import json, sys
start = set(sys.modules)
import stratrun
alone = set(sys.modules) - start
import torch
with_torch = set(sys.modules)
from stratrun import Runner
print(json.dumps([sorted(alone), sorted(set(sys.modules) - with_torch)]))
"""


def test_importing_brings_in_nothing_but_our_own_modules() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True)
    alone, runner = json.loads(done.stdout)
    assert [name for name in alone if name.startswith("stratrun")] == ["stratrun"]
    assert {name.partition(".")[0] for name in alone} - {"stratrun"} <= sys.stdlib_module_names
    # Beyond torch no package of others, be it a dependency; they come when they are first needed.
    assert {name.partition(".")[0] for name in runner} - {"stratrun"} <= sys.stdlib_module_names
    # A millisecond or two each: the whole of them must stay well below what torch itself takes.
    assert len(runner) <= 270, len(runner)
