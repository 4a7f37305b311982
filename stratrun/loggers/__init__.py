"""Where numbers go."""

from stratrun.loggers.background import BackgroundLogger
from stratrun.loggers.base import Logger
from stratrun.loggers.buffer import RecordBuffer, merged
from stratrun.loggers.console import ConsoleLogger
from stratrun.loggers.csv import CsvLogger
from stratrun.loggers.files import FilesLogger
from stratrun.loggers.folder import RunFolder
from stratrun.loggers.group import LoggerGroup, check_loggers
from stratrun.loggers.jsonl import JsonlLogger
from stratrun.loggers.record import Record
from stratrun.loggers.tensorboard import TensorBoardLogger
from stratrun.loggers.tracking import TrackingLogger

__all__ = [
    "BackgroundLogger",
    "ConsoleLogger",
    "CsvLogger",
    "FilesLogger",
    "JsonlLogger",
    "Logger",
    "LoggerGroup",
    "Record",
    "RecordBuffer",
    "RunFolder",
    "TensorBoardLogger",
    "TrackingLogger",
    "check_loggers",
    "merged",
]
