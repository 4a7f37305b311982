"""What a hook is, and the points at which a run calls it.

The order of a training run with validation after each epoch. A point that a custom loop
invents is called where the loop calls it::

    before_run
    before_train
      before_train_epoch                      for each epoch
        before_train_iter                     for each batch
        after_train_iter                        counters have moved
      after_train_epoch                       counters have moved
      before_val
        before_val_epoch
          before_val_iter                     for each batch
          after_val_iter
        after_val_epoch                       metrics are known
      after_val
    after_train
    after_run

`test` and `predict` have the same points as `val`. `before_save_checkpoint` comes before each
save, `after_load_checkpoint` between `before_run` and the loop, `on_exception` where any of it fails.
An evaluation that is left because the job is asked to end has `on_break_off` in place of its `after_` points.
`before_log` and `after_log` come where values of training are logged: what a hook puts into `values` is, too.
"""

from typing import Any, ClassVar

_ITER = ("batch_idx", "data_batch")
_DONE = (*_ITER, "outputs")

POINTS: dict[str, tuple[str, ...]] = {
    "before_run": (),
    "after_run": (),
    "before_train": (),
    "after_train": (),
    "before_train_epoch": (),
    "after_train_epoch": (),
    "before_train_iter": _ITER,
    "after_train_iter": _DONE,
    "before_val": (),
    "after_val": ("metrics",),
    "before_val_epoch": (),
    "after_val_epoch": ("metrics",),
    "before_val_iter": _ITER,
    "after_val_iter": _DONE,
    "before_test": (),
    "after_test": ("metrics",),
    "before_test_epoch": (),
    "after_test_epoch": ("metrics",),
    "before_test_iter": _ITER,
    "after_test_iter": _DONE,
    "before_predict": (),
    "after_predict": ("predictions",),
    "before_predict_epoch": (),
    "after_predict_epoch": (),
    "before_predict_iter": _ITER,
    "after_predict_iter": _DONE,
    "before_save_checkpoint": ("checkpoint",),
    "after_load_checkpoint": ("checkpoint",),
    "before_log": ("values",),
    "after_log": (),
    "on_exception": ("exception",),
    "on_break_off": (),
}
"""Built-in points, with the details that each gives beside `runner`."""

FOREIGN_POINTS = {
    "before_iter": "before_train_iter",
    "after_iter": "after_train_iter",
    "before_epoch": "before_train_epoch",
    "after_epoch": "after_train_epoch",
    "on_fit_start": "before_run",
    "on_fit_end": "after_run",
    "on_train_start": "before_train",
    "on_train_end": "after_train",
    "on_train_begin": "before_train",
    "on_train_epoch_start": "before_train_epoch",
    "on_train_epoch_end": "after_train_epoch",
    "on_epoch_begin": "before_train_epoch",
    "on_epoch_end": "after_train_epoch",
    "on_train_batch_start": "before_train_iter",
    "on_train_batch_end": "after_train_iter",
    "on_step_begin": "before_train_iter",
    "on_step_end": "after_train_iter",
    "on_validation_start": "before_val",
    "on_validation_end": "after_val",
    "on_validation_epoch_start": "before_val_epoch",
    "on_validation_epoch_end": "after_val_epoch",
    "on_validation_batch_end": "after_val_iter",
    "on_save_checkpoint": "before_save_checkpoint",
    "on_load_checkpoint": "after_load_checkpoint",
}
"""What other frameworks call a point of ours, for messages."""

PRIORITIES = {
    "HIGHEST": 0,
    "VERY_HIGH": 10,
    "HIGH": 30,
    "ABOVE_NORMAL": 40,
    "NORMAL": 50,
    "BELOW_NORMAL": 60,
    "LOW": 70,
    "VERY_LOW": 90,
    "LOWEST": 100,
}


class Hook:
    """Side work at named points of a run.

    A subclass defines methods named after points, those of `POINTS` or any that a custom loop
    calls. A method takes just the arguments that it names, in any order: `runner`
    (a `RunContext`) and the details of the point. Hooks are called in ascending `priority`, then in the
    order of registration, by every process of the run.

    A hook with state worth keeping over a restart overrides `state_dict` and `load_state_dict`.
    """

    priority: ClassVar[int] = PRIORITIES["NORMAL"]

    goes_on: ClassVar[tuple[str, ...] | None] = ()
    """Entries of its state that a rollback (`non_finite`) leaves as they are, as they tell of data, epochs or
    files and not of weights; None for all of them."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
