"""Batches for loops: one global order, a position that can be saved, exact evaluation."""

from stratrun.data.batch import batch_size_of
from stratrun.data.check import check_data, has_no_length
from stratrun.data.feed import Feed, limited_to, unmoved
from stratrun.data.in_step import InStep
from stratrun.data.limited import Limit
from stratrun.data.loader import build_feed, samples_of_batch

__all__ = [
    "Feed",
    "InStep",
    "Limit",
    "batch_size_of",
    "build_feed",
    "check_data",
    "has_no_length",
    "limited_to",
    "samples_of_batch",
    "unmoved",
]
