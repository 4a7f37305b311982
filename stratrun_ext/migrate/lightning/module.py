"""Base classes in the place of Lightning's: what a subclass inherits when it defines nothing itself."""

import inspect
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn

from stratrun.errors import ModelError


class HParams(dict[str, Any]):
    """Arguments of a model by name: ``hparams.lr`` and ``hparams["lr"]`` are the same."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"no hyperparameter {name!r}; there are {', '.join(self) or 'none'}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class _Keeps:
    """Keeps the arguments that a class was made with."""

    _hparams: HParams

    @property
    def hparams(self) -> HParams:
        if "_hparams" not in self.__dict__:
            self.__dict__["_hparams"] = HParams()
        return self._hparams

    @property
    def hparams_initial(self) -> HParams:
        return HParams(self.hparams)

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] = (),
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Take the arguments of the ``__init__`` that calls this into `hparams`.

        Args:
            args: Names of those to take, or one dict of values; all of them by default.
            ignore: Names to leave out.
            frame: Whose arguments, if not the caller's.
            logger: Not looked at: a run logs its config.
        """
        if len(args) == 1 and isinstance(args[0], dict):
            self.hparams.update(args[0])
            return
        frame = frame or inspect.currentframe().f_back  # type: ignore[union-attr]
        assert frame is not None
        values = inspect.getargvalues(frame)
        found = {name: values.locals[name] for name in values.args if name in values.locals}
        found.pop("self", None)
        if values.keywords:
            found.update(values.locals[values.keywords])
        wrong = [name for name in args if name not in found]
        if wrong:
            raise ModelError(
                f"save_hyperparameters({wrong[0]!r}): __init__ has no such argument; "
                f"it has {', '.join(found) or 'none'}"
            )
        left_out = {ignore} if isinstance(ignore, str) else set(ignore)
        names = args or [name for name in found if name not in left_out]
        self.hparams.update({name: found[name] for name in names})


class LightningModule(_Keeps, nn.Module):
    """Stands in for ``lightning.LightningModule``, with the methods that a subclass may call on itself.

    It decides nothing: how a class is trained is found by the methods that it defines, whether it has this
    base, Lightning's own, or none but `nn.Module`.
    """

    automatic_optimization: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def current_epoch(self) -> int:
        return 0

    @property
    def global_step(self) -> int:
        return 0

    @property
    def trainer(self) -> Any:
        raise ModelError(
            f"{type(self).__name__}.trainer is there only in a run; in __init__ there is none yet: "
            "move this to setup(stage) or configure_optimizers()"
        )

    def log(self, name: str, value: Any, **how: Any) -> None:
        """Outside of a run there is nowhere to log to."""

    def log_dict(self, values: Any, **how: Any) -> None:
        """Outside of a run there is nowhere to log to."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Outside of a run there is nowhere to print to."""

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def unfreeze(self) -> None:
        self.requires_grad_(True).train()

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        """What a method that was not overridden does; a subclass may call it by `super`."""

    setup: Callable[..., Any] = _nothing
    teardown: Callable[..., Any] = _nothing
    configure_model: Callable[..., Any] = _nothing
    prepare_data: Callable[..., Any] = _nothing
    on_fit_start: Callable[..., Any] = _nothing
    on_fit_end: Callable[..., Any] = _nothing
    on_train_start: Callable[..., Any] = _nothing
    on_train_end: Callable[..., Any] = _nothing
    on_train_epoch_start: Callable[..., Any] = _nothing
    on_train_epoch_end: Callable[..., Any] = _nothing
    on_train_batch_start: Callable[..., Any] = _nothing
    on_train_batch_end: Callable[..., Any] = _nothing
    on_validation_start: Callable[..., Any] = _nothing
    on_validation_end: Callable[..., Any] = _nothing
    on_validation_epoch_start: Callable[..., Any] = _nothing
    on_validation_epoch_end: Callable[..., Any] = _nothing
    on_validation_batch_start: Callable[..., Any] = _nothing
    on_validation_batch_end: Callable[..., Any] = _nothing
    on_test_start: Callable[..., Any] = _nothing
    on_test_end: Callable[..., Any] = _nothing
    on_test_epoch_start: Callable[..., Any] = _nothing
    on_test_epoch_end: Callable[..., Any] = _nothing
    on_test_batch_start: Callable[..., Any] = _nothing
    on_test_batch_end: Callable[..., Any] = _nothing
    on_predict_start: Callable[..., Any] = _nothing
    on_predict_end: Callable[..., Any] = _nothing
    on_predict_epoch_start: Callable[..., Any] = _nothing
    on_predict_epoch_end: Callable[..., Any] = _nothing
    on_predict_batch_start: Callable[..., Any] = _nothing
    on_predict_batch_end: Callable[..., Any] = _nothing
    on_save_checkpoint: Callable[..., Any] = _nothing
    on_load_checkpoint: Callable[..., Any] = _nothing
    on_before_optimizer_step: Callable[..., Any] = _nothing


class LightningDataModule(_Keeps):
    """Stands in for ``lightning.LightningDataModule``: loaders in methods."""

    trainer: Any = None

    def prepare_data(self) -> None:
        """Download what the loaders need."""

    def setup(self, stage: str) -> None:
        """Make data sets; `stage` is ``fit``, ``validate``, ``test`` or ``predict``."""

    def teardown(self, stage: str) -> None:
        """Let go of what `setup` made."""
