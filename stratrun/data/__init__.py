"""Batches for loops: one global order, a position that can be saved, exact evaluation."""

from stratrun.data.batch import batch_size_of
from stratrun.data.check import check_data
from stratrun.data.feed import Feed
from stratrun.data.in_step import InStep
from stratrun.data.loader import build_feed

__all__ = ["Feed", "InStep", "batch_size_of", "build_feed", "check_data"]
