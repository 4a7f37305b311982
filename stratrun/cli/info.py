"""``stratrun info``: what runs on this machine would run on."""

import os
from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Secrets in variables are left out. Paste it where you report a fault."
    parser.add_argument("--json", action="store_true", help="for programs; sizes are in GiB")


def run(given: Namespace) -> int:
    # Only now: it imports torch, which takes seconds.
    from stratrun.environment import environment_report

    if os.environ.get("RANK", "0") == "0":
        report = environment_report()
        print(report.to_json() if given.json else report)
    return 0
