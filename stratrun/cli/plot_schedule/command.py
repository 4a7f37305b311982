"""``stratrun plot-schedule``: learning rates over a whole training, without starting it."""

import os
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec

from stratrun.cli.arguments import add_config_arguments
from stratrun.errors import ConfigError, MissingDependencyError

_ENDINGS = (".png", ".svg", ".pdf")


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Nothing is trained: model and optimizers are built without memory, the data for its length alone,\n"
        "and the schedules of the config moved as often as the training would. What is drawn is the value\n"
        "that each update is made with."
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="draw into this .png, .svg or .pdf, not in the terminal"
    )
    parser.add_argument(
        "--param", metavar="NAME", default="lr", help="such as momentum or weight_decay; default lr"
    )
    parser.add_argument(
        "-n",
        "--world-size",
        metavar="N",
        type=int,
        default=1,
        help="how many ranks share the data; default 1",
    )
    parser.add_argument(
        "--batches-per-epoch",
        metavar="B",
        type=int,
        help="of one rank, in place of what the data says, which is not built then",
    )


def run(given: Namespace) -> int:
    _check(given)
    # Only now: it imports torch, which takes seconds.
    from stratrun.cli.plot_schedule.chart import as_text
    from stratrun.cli.plot_schedule.course import course_of

    course = course_of(given)
    if given.out is None:
        print(as_text(course))
        return 0
    from stratrun.cli.plot_schedule.picture import draw

    draw(course, given.out)
    print(f"{given.out}: {', '.join(course.values)} over {course.updates} updates")
    for remark in course.remarks:
        print(f"  {remark}")
    return 0


def _check(given: Namespace) -> None:
    for option, value in (("world-size", given.world_size), ("batches-per-epoch", given.batches_per_epoch)):
        if value is not None and value < 1:
            raise ConfigError(f"--{option} {value}: must be at least 1")
    if "RANK" in os.environ:
        raise ConfigError("plot-schedule starts no processes; run it without torchrun, with --world-size N")
    if given.out is None:
        return
    if not given.out.endswith(_ENDINGS):
        raise ConfigError(f"--out {given.out}: must end in {', '.join(_ENDINGS)}")
    folder = os.path.dirname(given.out)
    if folder and not os.path.isdir(folder):
        raise ConfigError(f"--out {given.out}: there is no folder {folder}; make it first")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            f"--out {given.out} needs 'matplotlib'; pip install 'stratrun[plot]', or leave --out out "
            "to see it in the terminal"
        )
