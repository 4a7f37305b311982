"""Variables of the environment that change how a run goes."""

import os
import re
from typing import Any

from stratrun.config.redaction import redacted

_READ = re.compile(
    r"(?:OMP|MKL|KMP|GOMP|OPENBLAS)_\w+|CUDA_\w+|CUDNN_\w+|CUBLAS_\w+|NVIDIA_\w+|HIP_\w+|ROCR_\w+|NCCL_\w+|GLOO_\w+"
    r"|TORCH\w*|PYTORCH_\w+|TRITON_\w+|SLURM_\w+|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK"
    r"|GROUP_WORLD_SIZE|ROLE_\w+|MASTER_ADDR|MASTER_PORT|STRATRUN_\w+|PYTHONHASHSEED|PYTHONPATH"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|WANDB_\w+|MLFLOW_\w+|FSSPEC_\w+|AWS_\w+|HF_\w+"
)


def variables() -> dict[str, Any]:
    """Those that are set, in the order of their names, without secrets."""
    found = {name: value for name, value in sorted(os.environ.items()) if _READ.fullmatch(name)}
    return dict(redacted(found))
