"""Memory that was asked for and is not there."""

import torch

_TEXTS = (
    "can't allocate memory",  # of torch's allocator for the CPU
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether what failed would not have, had there been more memory, or less to do at once."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def give_back(device: torch.device) -> None:
    """Have the allocator give up what it keeps and nobody uses: it may be cut too small for what comes."""
    module = torch.get_device_module(device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()
