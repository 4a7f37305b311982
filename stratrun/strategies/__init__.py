from stratrun.strategies.base import Strategy
from stratrun.strategies.ddp import DDPStrategy
from stratrun.strategies.single import SingleDeviceStrategy

__all__ = ["DDPStrategy", "SingleDeviceStrategy", "Strategy"]
