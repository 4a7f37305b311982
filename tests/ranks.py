"""Local ranks that stay up between tests."""

from stratrun.testing.rank_server import RankServer
from stratrun.testing.ranks import CALL_LIMIT, RemoteTraceback
from stratrun.testing.ranks import Ranks as _Ranks

__all__ = ["CALL_LIMIT", "Ranks", "RemoteTraceback"]


class Ranks(_Ranks):
    """`Ranks` forked from a given server."""

    def __init__(
        self, server: RankServer, world_size: int, joined: bool = True, limit: float = CALL_LIMIT
    ) -> None:
        super().__init__(world_size, joined, limit, server)
