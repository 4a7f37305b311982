"""The process from which the ranks of tests are forked."""

from stratrun.testing.rank_server import RankError, RankServer

__all__ = ["RankError", "RankServer"]
