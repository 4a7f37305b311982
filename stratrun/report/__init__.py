"""The picture of a run: what its log files tell, as a page that needs nothing else."""

from stratrun.report.history import History, read_history
from stratrun.report.page import page, write_report

__all__ = ["History", "page", "read_history", "write_report"]
