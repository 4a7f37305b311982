"""Ranks on this machine that stay up between calls, and checks for what others plug in."""

from stratrun.testing.rank_server import RankError
from stratrun.testing.ranks import Ranks, RemoteTraceback

__all__ = ["RankError", "Ranks", "RemoteTraceback"]
