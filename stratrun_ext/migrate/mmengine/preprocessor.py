"""What a batch goes through ahead of the model."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratrun.errors import ConfigError, ModelError
from stratrun.registry import MODELS


@MODELS.register_module()
class BaseDataPreprocessor(nn.Module):
    """Leaves a batch as it is: by then it is on the device of the model already.

    Args:
        non_blocking: Of no meaning here; batches are copied beside the work where that is possible.
    """

    def __init__(self, non_blocking: bool | None = False) -> None:
        super().__init__()

    def forward(self, data: Any, training: bool = False) -> Any:
        return data


@MODELS.register_module()
class ImgDataPreprocessor(BaseDataPreprocessor):
    """Makes of `inputs` of a batch one tensor of normalised images.

    Images of several sizes, as a list, are padded below and to the right up to the largest.

    Args:
        mean: Of each channel, subtracted; goes with `std`, by which is divided.
        pad_size_divisor: Heights and widths become multiples of it.
        pad_value: What the margin is filled with, after normalisation.
        bgr_to_rgb: Whether to turn the channels round, as `rgb_to_bgr` does, before normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pad_size_divisor: int = 1,
        pad_value: float = 0,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        non_blocking: bool | None = False,
    ) -> None:
        super().__init__(non_blocking)
        if bgr_to_rgb and rgb_to_bgr:
            raise ConfigError("ImgDataPreprocessor: bgr_to_rgb and rgb_to_bgr undo each other; give one")
        if (mean is None) != (std is None):
            raise ConfigError(f"ImgDataPreprocessor: mean={mean!r} and std={std!r} go together; give both")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) not in (1, 3):
                raise ConfigError(f"ImgDataPreprocessor: {name}={values!r} must have 1 or 3 values")
            if values is not None:
                tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
                self.register_buffer(name, tensor, persistent=False)
        self.normalizes: bool = mean is not None
        self.turns: bool = bgr_to_rgb or rgb_to_bgr
        self.pad_size_divisor = pad_size_divisor
        self.pad_value = pad_value

    def forward(self, data: Any, training: bool = False) -> Any:
        inputs = data["inputs"]
        if isinstance(inputs, Tensor):
            inputs = self._prepared(inputs)
            size = (inputs.shape[-2], inputs.shape[-1])
            return {**data, "inputs": self._padded(inputs, size)}
        if not isinstance(inputs, Sequence) or not all(isinstance(one, Tensor) for one in inputs):
            raise ModelError(
                f"ImgDataPreprocessor: 'inputs' of a batch is a {type(inputs).__name__}; it must be a tensor "
                "(N, C, H, W) or a list of tensors (C, H, W)"
            )
        images = [self._prepared(one) for one in inputs]
        largest = (max(one.shape[-2] for one in images), max(one.shape[-1] for one in images))
        return {**data, "inputs": torch.stack([self._padded(one, largest) for one in images])}

    def _prepared(self, images: Tensor) -> Tensor:
        if self.turns:
            images = images[..., [2, 1, 0], :, :]
        images = images.float()
        return (images - self.mean) / self.std if self.normalizes else images

    def _padded(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        divisor = self.pad_size_divisor
        height, width = (math.ceil(length / divisor) * divisor for length in size)
        margin = (0, width - images.shape[-1], 0, height - images.shape[-2])
        return functional.pad(images, margin, "constant", self.pad_value)
