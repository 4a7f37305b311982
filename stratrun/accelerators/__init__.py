from stratrun.accelerators.base import Accelerator
from stratrun.accelerators.cpu import CPUAccelerator
from stratrun.accelerators.cuda import CUDAAccelerator
from stratrun.accelerators.mps import MPSAccelerator

__all__ = ["Accelerator", "CPUAccelerator", "CUDAAccelerator", "MPSAccelerator"]
