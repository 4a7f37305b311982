"""``stratrun report``: the picture of one run, or of several, as a page."""

from argparse import ArgumentParser, Namespace

from stratrun.report import write_report


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("work_dirs", metavar="WORK_DIR", nargs="+", help="of each run; a path or a URL")
    parser.add_argument("--out", metavar="FILE", help="the page; default report.html in the first work dir")


def run(given: Namespace) -> int:
    print(f"report: {write_report(given.work_dirs, given.out)}")
    return 0
