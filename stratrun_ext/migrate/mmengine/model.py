"""A model in MMEngine's form: one `forward` with modes, and a dict of losses."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError, ModelError
from stratrun.registry import MODELS
from stratrun_ext.migrate.mmengine.preprocessor import BaseDataPreprocessor


class BaseModel(nn.Module, ABC):
    """A module whose ``forward(..., mode)`` gives losses, predictions or features of a batch.

    A mapping as a batch becomes keywords of `forward`, a list or tuple its first arguments. With
    ``mode="loss"`` it returns a dict: each value is averaged, and the sum of those whose names contain
    ``loss`` is trained on. The others are logged.

    It differs from MMEngine's in that a run makes the update: there is no ``optim_wrapper``. And where a
    dict has `loss` among several losses, the value logged as `loss` is their sum, as that is trained on.

    Args:
        data_preprocessor: What each batch goes through first: a module, called with the batch and whether
            it is for training, or a dict with `type`.
        init_cfg: For other weights to begin with; only None is taken.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        step = cls.__dict__.get("train_step")
        if step is not None and "optim_wrapper" in inspect.signature(step).parameters:
            raise ModelError(
                f"{cls.__name__}.train_step(..., optim_wrapper) makes updates itself, which a loop does; "
                "return the losses from train_step(self, data), or for several updates in a step "
                "write a loop (docs/custom_loop.md)"
            )

    def __init__(self, data_preprocessor: Any = None, init_cfg: Any = None) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ConfigError(
                f"{type(self).__name__}: init_cfg={init_cfg!r} is not taken; initialise the weights in "
                "__init__, and give weights of a file as load_from= to the Runner"
            )
        self.data_preprocessor: nn.Module = _preprocessor(data_preprocessor, type(self).__name__)

    @abstractmethod
    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Losses, predictions or features, as `mode` says: ``"loss"``, ``"predict"`` or ``"tensor"``."""

    def train_step(self, data: Any) -> dict[str, Any]:
        losses = self._run_forward(self.data_preprocessor(data, True), mode="loss")
        loss, values = self.parse_losses(losses)
        return {**values, "loss": loss}

    def val_step(self, data: Any) -> Any:
        return self._run_forward(self.data_preprocessor(data, False), mode="predict")

    def test_step(self, data: Any) -> Any:
        return self.val_step(data)

    def predict_step(self, data: Any) -> Any:
        return self.test_step(data)

    def parse_losses(self, losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to train on, and the values to log, which have it as `loss`.

        Raises:
            ModelError: something is neither a tensor nor a list of them, or no name contains ``loss``.
        """
        name = type(self).__name__
        if not isinstance(losses, Mapping):
            raise ModelError(
                f"{name}.forward(mode='loss') returned a {type(losses).__name__}; it must return a dict of "
                "losses, such as {'loss': loss}"
            )
        values = {key: _mean(key, value, name) for key, value in losses.items()}
        parts = [value for key, value in values.items() if "loss" in key]
        if not parts:
            keys = ", ".join(map(repr, values)) or "nothing"
            raise ModelError(
                f"{name}.forward(mode='loss') returned {keys}, and no name contains 'loss'; only those that "
                "do are trained on: rename one, for instance to 'loss'"
            )
        # One after the other from the first on, as `sum` does, so that rounding is the same.
        loss: Tensor = sum(parts)  # type: ignore[assignment]
        return loss, {**values, "loss": loss}

    def _run_forward(self, data: Any, mode: str) -> Any:
        if isinstance(data, Mapping):
            return self(**data, mode=mode)
        if isinstance(data, list | tuple):
            return self(*data, mode=mode)
        raise ModelError(
            f"{type(self).__name__} got a batch that is a {type(data).__name__}; forward takes the entries "
            "of a dict, a list or a tuple: have collate_fn or the data_preprocessor return one"
        )


def _preprocessor(spec: Any, owner: str) -> nn.Module:
    if spec is None:
        return BaseDataPreprocessor()
    if isinstance(spec, nn.Module):
        return spec
    if isinstance(spec, Mapping):
        built = MODELS.build({"type": "BaseDataPreprocessor", **spec}, where="data_preprocessor")
        if isinstance(built, nn.Module):
            return built
    raise ConfigError(
        f"{owner}: data_preprocessor={spec!r} is none; give an nn.Module that is called with a batch and "
        "whether it is for training, or a dict with 'type'"
    )


def _mean(key: str, value: Any, owner: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.mean()
    if isinstance(value, list) and value and all(isinstance(one, Tensor) for one in value):
        total = value[0].mean()
        for one in value[1:]:
            total = total + one.mean()
        return torch.as_tensor(total)
    raise ModelError(
        f"{owner}.forward(mode='loss') returned a {type(value).__name__} as {key!r}; it must be a tensor or "
        "a list of tensors: leave out .item(), and what is no number"
    )
