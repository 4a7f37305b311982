from stratrun.strategies.base import Strategy
from stratrun.strategies.ddp import DDPStrategy
from stratrun.strategies.fsdp import FSDPStrategy
from stratrun.strategies.hsdp import HSDPStrategy
from stratrun.strategies.single import SingleDeviceStrategy
from stratrun.strategies.tensor_parallel import TensorParallelStrategy

__all__ = [
    "DDPStrategy",
    "FSDPStrategy",
    "HSDPStrategy",
    "SingleDeviceStrategy",
    "Strategy",
    "TensorParallelStrategy",
]
