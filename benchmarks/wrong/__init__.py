"""The same mistakes in several frameworks: a module for each, a function for each that can be made there.

A function makes its mistake in the folder that it is given, as a user of that framework would.
"""

from dataclasses import dataclass

FRAMEWORKS = ("stratrun", "lightning", "mmengine", "accelerate", "ignite")


@dataclass(frozen=True)
class Wrong:
    """A mistake, and what whoever makes it needs to read.

    Args:
        what: The mistake, in a few words.
        value: What was given, in any of these forms.
        mend: What to do, or the right name, in any of these forms; lower case.
    """

    what: str
    value: tuple[str, ...]
    mend: tuple[str, ...]


MISTAKES: dict[str, Wrong] = {
    "device_typo": Wrong("device `cdua`", ("cdua",), ("cuda",)),
    "device_absent": Wrong("`cuda` where there is none", ("cuda", "gpu"), ("cpu", "'auto'", "driver")),
    "strategy_typo": Wrong("strategy `dpp`", ("dpp",), ("ddp",)),
    "precision_typo": Wrong("precision `fp17`", ("fp17",), ("fp16", "16-mixed")),
    "hook_typo": Wrong(
        "hook or callback by a misspelt name", ("EarlyStopingHook", "EarlyStoping"), ("earlystopping",)
    ),
    "hook_point_typo": Wrong(
        "hook with a misspelt method",
        ("after_train_epochh", "on_train_epoch_ends"),
        ("after_train_epoch'", "on_train_epoch_end'", "did you mean"),
    ),
    "optimizer_typo": Wrong("optimizer `AdmaW`", ("AdmaW",), ("adamw",)),
    "optimizer_argument": Wrong("optimizer without a learning rate's name: `lrr`", ("lrr",), ("'lr'", "lr=")),
    "optimizer_of_other": Wrong(
        "optimizer over another model's parameters", ("optimizer",), ("parameters", "model")
    ),
    "length_typo": Wrong("`max_epoch` in place of `max_epochs`", ("max_epoch",), ("max_epochs",)),
    "length_negative": Wrong(
        "length of -5 epochs", ("-5",), ("at least", "greater", "must be", "positive", "integer")
    ),
    "accumulate_zero": Wrong(
        "accumulation of 0 batches", ("0",), ("at least", "greater", "must be", "positive")
    ),
    "override_typo": Wrong(
        "override of a misspelt key", ("optimiser", "optim_wraper"), ("optimizer", "optim_wrapper")
    ),
    "quoted_number": Wrong("`lr: 1e-3` in YAML, or in quotes", ("1e-3",), ("number", "float", "lr=1e-3")),
    "no_val_data": Wrong(
        "metrics to validate by, and no data", ("val",), ("val_dataloader", "val_dataloaders")
    ),
    "monitor_typo": Wrong("monitor of a misspelt metric", ("acuracy", "val_los"), ("accuracy", "val_loss")),
    "empty_loader": Wrong(
        "loader without a batch",
        ("dataloader", "loader", "data"),
        ("empty", "no samples", "zero", "at least one"),
    ),
    "spent_iterator": Wrong(
        "iterator that is spent after an epoch",
        ("loader", "iterator", "data"),
        ("a list", "function", "epoch_length", "each epoch", "again", "restart", "dataloader"),
    ),
    "none_loss": Wrong("training step that returns None", ("none",), ("return", "skip")),
    "vector_loss": Wrong(
        "loss of each sample in place of a mean", ("(4,", "[4]", "scalar"), ("mean", "scalar")
    ),
    "nan_loss": Wrong("loss that is NaN", ("nan", "not finite"), ("learning rate", "clip", "non_finite")),
    "shape_mismatch": Wrong(
        "layer of another width than the data", ("4x5", "4x4", "shapes", "in_features"), ("(", "shape")
    ),
    "label_range": Wrong(
        "label that the model has no output for", ("target", "label"), ("out of bounds", "classes")
    ),
    "no_checkpoint": Wrong("resume from a path that is not there", ("nowhere",), ("not", "no ")),
    "cut_checkpoint": Wrong(
        "resume from a damaged checkpoint",
        ("checkpoint", "ckpt", "pth", ".pt", "safetensors", "state"),
        ("damaged", "corrupt", "intact", "digest", "checksum"),
    ),
    "other_checkpoint": Wrong(
        "checkpoint of another model", ("missing", "unexpected", "lacks"), ("missing", "unexpected", "is it")
    ),
    "no_launcher": Wrong("two processes without a launcher", ("2", "ddp"), ("torchrun", "launch", "process")),
    "plateau_alone": Wrong("ReduceLROnPlateau without a value to follow", ("plateau",), ("monitor",)),
    "clip_negative": Wrong(
        "gradients limited to a norm of -1", ("-1",), ("above 0", "positive", "greater", "must be")
    ),
    "interval_zero": Wrong(
        "validation each 0 epochs", ("0",), ("at least", "greater", "must be", "positive")
    ),
}
