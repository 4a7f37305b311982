"""What the user filled in, and what each job needs of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stratrun.errors import MissingArgumentError, UnknownNameError
from stratrun.problems import part
from stratrun.registry import LOOPS
from stratrun.registry.spec import edited

Job = Literal["train", "val", "test", "predict"]

DEFAULT_HOOKS: dict[str, Any] = {
    "timer": "IterTimerHook",
    "scheduler": "ParamSchedulerHook",
    "logger": "LoggerHook",
    "checkpoint": "CheckpointHook",
}
DEFAULT_LOGGERS: tuple[Any, ...] = ("console", "jsonl", "csv", "files")


@dataclass(slots=True)
class Form:
    """The arguments of a `Runner`, as given. Nothing here is built."""

    model: Any
    name: str | None
    work_dir: Any
    train_dataloader: Any
    val_dataloader: Any
    test_dataloader: Any
    predict_dataloader: Any
    train_cfg: Any
    val_cfg: Any
    test_cfg: Any
    predict_cfg: Any
    val_evaluator: Any
    test_evaluator: Any
    optimizer: Any
    param_scheduler: Any
    loss: Any
    clip_grad: Any
    non_finite: Any
    strategy: Any
    accelerator: Any
    precision: Any
    compile: Any
    activation_checkpointing: Any
    default_hooks: Mapping[str, Any] | None
    custom_hooks: Iterable[Any]
    loggers: Any
    load_from: Any
    resume: Any
    randomness: Mapping[str, Any] | None
    env_cfg: Mapping[str, Any] | None
    checkpoint_cfg: Mapping[str, Any] | None
    control_cfg: Mapping[str, Any] | None
    inference_cfg: Mapping[str, Any] | None
    dev_cfg: Mapping[str, Any] | None
    cfg: Mapping[str, Any] | None

    def of(self, job: str, part: str) -> Any:
        """`train_cfg`, `val_dataloader` and so on; None where a job has no such argument."""
        return getattr(self, f"{job}_{part}", None)

    @property
    def validates(self) -> bool:
        """Whether training has something to validate on."""
        return self.val_dataloader is not None


def require(form: Form, job: Job, *, within: str | None = "") -> None:
    """Refuse a job whose arguments are not all there.

    Args:
        within: The job that asks for it, if one must; None if none does.

    Raises:
        MissingArgumentError: names what is missing, and what it may look like.
    """
    if within is None:
        raise MissingArgumentError(f"no job is under way to {job} in; outside of hooks and loops, {job}()")
    _require(form, job, f"{job}_dataloader", "dict(dataset=..., batch_size=32), a DataLoader, or a data set")
    if job == "train":
        _require(form, job, "train_cfg", "dict(by_epoch=True, max_epochs=10)")
        # A recipe of the user's own may do without, and a schedule without one has nothing to move.
        own = of_the_user(form, "train") and not form.param_scheduler
        _require(form, job, "optimizer", "dict(type='AdamW', lr=1e-3)", unless=own)
    lone = [
        name for name in ("val_evaluator", "val_cfg") if job == "train" and getattr(form, name) is not None
    ]
    if lone and not form.validates:
        with part(lone[0]):
            raise MissingArgumentError(
                f"{lone[0]} is given, but no val_dataloader to validate on; give val_dataloader=..., "
                f"or leave out {lone[0]}"
            )


def of_the_user(form: Form, job: Job) -> bool:
    """Whether the loop of a job is not one of ours, so that its points and its needs are unknown."""
    kind = form.of(job, "cfg")
    if isinstance(kind, Mapping):
        kind = kind.get("type")
    if kind is None:
        return False
    if isinstance(kind, str) and "." not in kind:
        try:
            kind = LOOPS.get(kind)
        except UnknownNameError:
            return True
    home = kind if isinstance(kind, str) else (kind if isinstance(kind, type) else type(kind)).__module__
    return not home.startswith("stratrun.loops")


def default_hooks(form: Form) -> dict[str, Any]:
    """The default hooks by name, without those that were switched off."""
    chosen = {**DEFAULT_HOOKS, **(form.default_hooks or {})}
    return {
        name: _completed(name, spec)
        for name, spec in chosen.items()
        if spec is not None and spec is not False
    }


def _completed(name: str, spec: Any) -> Any:
    """Settings without a type are those of the default hook of that name."""
    if isinstance(spec, Mapping) and "type" not in spec and name in DEFAULT_HOOKS:
        return edited(spec, put={"type": DEFAULT_HOOKS[name]})
    return DEFAULT_HOOKS[name] if spec is True and name in DEFAULT_HOOKS else spec


def _require(form: Form, job: Job, name: str, example: str, *, unless: bool = False) -> None:
    if getattr(form, name) is None and not unless:
        with part(name):
            raise MissingArgumentError(
                f"{job}() needs {name}, which was not given; for example {name}={example}"
            )
