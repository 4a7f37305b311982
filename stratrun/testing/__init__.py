"""Ranks on this machine that stay up between calls, and checks for what others plug in.

A check trains small models with a part and compares with plain PyTorch loops, with one process and with
uninterrupted runs. It returns a `Report`, or raises `CheckFailure`, whose message is one.
"""

from stratrun.testing.hook import check_hook
from stratrun.testing.logger import check_logger
from stratrun.testing.loop import check_loop
from stratrun.testing.metric import check_metric
from stratrun.testing.precision import check_precision
from stratrun.testing.problem import Classifier
from stratrun.testing.rank_server import RankError
from stratrun.testing.ranks import Ranks, RemoteTraceback
from stratrun.testing.report import CheckFailure, Finding, Report
from stratrun.testing.strategy import check_strategy
from stratrun.testing.syncs import count_syncs

__all__ = [
    "CheckFailure",
    "Classifier",
    "Finding",
    "RankError",
    "Ranks",
    "RemoteTraceback",
    "Report",
    "check_hook",
    "check_logger",
    "check_loop",
    "check_metric",
    "check_precision",
    "check_strategy",
    "count_syncs",
]
