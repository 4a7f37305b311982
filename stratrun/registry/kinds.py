"""The registries, one for each kind of thing that a user may name."""

from stratrun.registry.registry import Registry

RUNNERS = Registry("runners", "stratrun.runner")
LOOPS = Registry("loops", "stratrun.loops")
HOOKS = Registry("hooks", "stratrun.hooks")
MODELS = Registry("models", fallbacks=("torch.nn",))
DATASETS = Registry("datasets", "stratrun.data.views", fallbacks=("torch.utils.data",))
SAMPLERS = Registry("samplers", "stratrun.data.samplers", fallbacks=("torch.utils.data",))
COLLATES = Registry("collates", keep_functions=True)
TRANSFORMS = Registry("transforms", keep_functions=True)
# The parts before the whole, which has deprecated names of its own for what is in them.
_TORCHMETRICS = tuple(
    f"torchmetrics.{part}"
    for part in ("classification", "regression", "retrieval", "text", "image", "audio", "clustering")
)
METRICS = Registry(
    "metrics", "stratrun.evaluation", fallbacks=(*_TORCHMETRICS, "torchmetrics"), extra="metrics"
)
OPTIMIZERS = Registry("optimizers", fallbacks=("torch.optim",))
# The last for SWALR alone.
PARAM_SCHEDULERS = Registry(
    "param_schedulers",
    "stratrun.optim.shapes",
    fallbacks=("torch.optim.lr_scheduler", "torch.optim.swa_utils"),
)
STRATEGIES = Registry("strategies", "stratrun.strategies")
ACCELERATORS = Registry("accelerators", "stratrun.accelerators")
PRECISIONS = Registry("precisions", "stratrun.precision")
LOGGERS = Registry("loggers", "stratrun.loggers")
LAUNCHERS = Registry("launchers", "stratrun.launch")
STORAGES = Registry("storages")
