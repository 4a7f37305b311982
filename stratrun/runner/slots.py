"""Where a config has something to fill in, and what takes that: for those who explain or describe configs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from stratrun.control.settings import ControlSettings
from stratrun.data.raw import RawSteps
from stratrun.engine import Clipping, NonFinite
from stratrun.registry import (
    ACCELERATORS,
    COLLATES,
    DATASETS,
    HOOKS,
    LOGGERS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    PRECISIONS,
    RUNNERS,
    SAMPLERS,
    STRATEGIES,
    TRANSFORMS,
    Registry,
)
from stratrun.runner.developing import DevSettings
from stratrun.runner.environment import EnvSettings, Randomness
from stratrun.runner.form import DEFAULT_HOOKS
from stratrun.runner.parts import LOOPS_OF
from stratrun.runner.saving import SaveSettings


@dataclass(frozen=True, slots=True)
class Slot:
    """What takes the values of one place of a config."""

    registry: Registry | None = None
    """Of what `type` names there."""
    default: str | None = None
    """The class, where no `type` is given."""
    settings: type | None = None
    """A dataclass whose fields they are."""
    given: tuple[str, ...] = ()
    """Arguments of the class that the run gives."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """What may stand beside the arguments of the class, and what it does."""
    many: bool = False
    """Whether a list of them will do too."""
    named: bool = False
    """Whether a dict of them by name will do too."""


_OPTIMIZER = Slot(
    OPTIMIZERS,
    given=("params",),
    beside={
        "params": "The parts of the model whose parameters it has: names, or patterns of them.",
        "paramwise": "Groups of parameters with options of their own (docs/optimizers.md).",
        "scale_lr": "Scale learning rates by the samples of an update (docs/optimizers.md).",
    },
    named=True,
)
_SCHEDULE = Slot(
    PARAM_SCHEDULERS,
    given=("optimizer",),
    beside={
        "by_epoch": "Whether it moves, and counts, by epochs rather than by updates.",
        "optimizer": "Which optimizer it moves, by name; the first by default.",
        "monitor": "The result of validation that it follows.",
        "param": "What it moves; 'lr' by default.",
        "groups": "Which groups of parameters it moves; all by default.",
        "begin": "Where it begins, in its own counting.",
        "end": "Where it ends.",
        "convert_to_iter_based": "Give lengths in epochs, and move at each update.",
    },
    many=True,
)
_METRIC = Slot(
    METRICS,
    beside={
        "preds": "What the predictions are called in what the model returns.",
        "target": "What the targets are called in the batch.",
        "prefix": "What stands before the names of its values.",
        "plot": "Draw the metric of torchmetrics too.",
        "metrics": "Several metrics, in place of one.",
    },
    many=True,
    named=True,
)
_HOOK = {"priority": "When it is called among the hooks: a name or a number, lower ones first."}
LOADER = "DataLoader"
"""What stands for the options of a loader: ours, and those of torch's."""
LOADER_KEYS = {
    "global_batch_size": "Samples of a batch over all ranks, in place of batch_size.",
    "seed_samples": "Draw augmentation from the seed, the epoch and the sample.",
    "sharded": "The data set itself gives each rank its own samples.",
}
_LOOPS = {"train": "EpochBasedTrainLoop", **LOOPS_OF}
_JOBS = tuple(_LOOPS)

SLOTS: dict[str, Slot] = {
    "": Slot(RUNNERS, default="Runner"),
    "model": Slot(MODELS),
    "loss": Slot(MODELS),
    "optimizer": _OPTIMIZER,
    "param_scheduler": _SCHEDULE,
    **{f"{job}_cfg": Slot(LOOPS, default, given=("runner", "dataloader")) for job, default in _LOOPS.items()},
    **{f"{job}_dataloader.dataset": Slot(DATASETS) for job in _JOBS},
    **{f"{job}_dataloader.{key}": Slot(SAMPLERS) for job in _JOBS for key in ("sampler", "batch_sampler")},
    **{f"{job}_dataloader.collate_fn": Slot(COLLATES) for job in _JOBS},
    "val_evaluator": _METRIC,
    "test_evaluator": _METRIC,
    "strategy": Slot(STRATEGIES),
    "accelerator": Slot(ACCELERATORS),
    "precision": Slot(PRECISIONS),
    **{
        f"default_hooks.{name}": Slot(HOOKS, default, beside=_HOOK) for name, default in DEFAULT_HOOKS.items()
    },
    "custom_hooks": Slot(HOOKS, beside=_HOOK, many=True),
    "loggers": Slot(LOGGERS, many=True),
    "clip_grad": Slot(settings=Clipping),
    "non_finite": Slot(settings=NonFinite),
    "randomness": Slot(settings=Randomness),
    "env_cfg": Slot(settings=EnvSettings),
    "checkpoint_cfg": Slot(settings=SaveSettings),
    "control_cfg": Slot(settings=ControlSettings),
    "dev_cfg": Slot(settings=DevSettings),
    "inference_cfg": Slot(settings=RawSteps),
}
# What a class that is named within another is looked up in, by the argument.
_WITHIN = {"dataset*": DATASETS, "*transform*": TRANSFORMS, "*sampler*": SAMPLERS, "*": MODELS}


def slot_of(key: str) -> Slot | None:
    """What takes the values at a dotted name; None for a value that nothing further is named in."""
    if key in SLOTS:
        return SLOTS[key]
    outer, _, last = key.rpartition(".")
    around = SLOTS.get(outer)
    if around is not None and ((around.many and last.isdecimal()) or (around.named and last)):
        return around
    return None


def within(argument: str) -> Registry:
    """Where a class is looked up that a dict names as the argument of another class."""
    return next(registry for pattern, registry in _WITHIN.items() if fnmatchcase(argument, pattern))


def holders(key: str) -> Iterator[tuple[str, str]]:
    """Each prefix of a dotted name that may be what takes the rest, and that rest; the longest first."""
    names = key.split(".")
    for size in range(len(names) - 1, -1, -1):
        yield ".".join(names[:size]), ".".join(names[size:])


def value_at(config: Any, key: str) -> Any:
    """What a config has under a dotted name, in which the items of lists are numbers.

    Raises:
        KeyError: there is nothing.
    """
    node = config
    for name in key.split(".") if key else ():
        if isinstance(node, Mapping):
            # Keys may be numbers in a config.
            found = [one for one in node if str(one) == name]
            node = node[found[0] if found else name]
        elif isinstance(node, list | tuple) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise KeyError(key)
    return node
