"""Where numbers go."""

from stratrun.loggers.base import Logger
from stratrun.loggers.buffer import RecordBuffer, merged
from stratrun.loggers.console import ConsoleLogger
from stratrun.loggers.csv import CsvLogger
from stratrun.loggers.folder import RunFolder
from stratrun.loggers.group import LoggerGroup, check_loggers
from stratrun.loggers.jsonl import JsonlLogger
from stratrun.loggers.record import Record
from stratrun.loggers.tensorboard import TensorBoardLogger

__all__ = [
    "ConsoleLogger",
    "CsvLogger",
    "JsonlLogger",
    "Logger",
    "LoggerGroup",
    "Record",
    "RecordBuffer",
    "RunFolder",
    "TensorBoardLogger",
    "check_loggers",
    "merged",
]
