"""What users call an image, as one picture."""

from __future__ import annotations

import math
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stratrun.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = (1, 3, 4)
MAX_SIDE = 2048
"""Pixels; a larger picture is shrunk."""
MAX_TILES = 64
"""Of a batch so many images are shown."""


def check_image(image: Any, name: str = "image") -> None:
    """Refuse what is no image, without a look at its values.

    Raises:
        ConfigError: it has no shape or type of an image.
        MissingDependencyError: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise MissingDependencyError("images need the package 'PIL'; pip install 'stratrun[images]'")
    if _is_picture(image) or hasattr(image, "savefig"):
        return
    shape, dtype = getattr(image, "shape", None), str(getattr(image, "dtype", "")).rpartition(".")[2]
    if shape is None:
        raise ConfigError(
            f"log_image({name!r}): a {type(image).__name__} is no image; give a tensor, an array, a picture "
            "of Pillow or a figure of matplotlib"
        )
    if not 2 <= len(shape) <= 4 or 0 in shape or (len(shape) > 2 and _channels_at(image) is None):
        raise ConfigError(
            f"log_image({name!r}): shape {tuple(shape)} is not that of an image; give (H, W), (C, H, W) or "
            "(H, W, C) with 1, 3 or 4 channels, or a batch of these"
        )
    if not (dtype in ("uint8", "bool") or "float" in dtype):
        raise ConfigError(
            f"log_image({name!r}): values of type {dtype} have no known range; give uint8 (0 to 255) or "
            "floats (0 to 1)"
        )


def picture_of(image: Any) -> tuple[Image, bool]:
    """The picture, in mode ``L``, ``RGB`` or ``RGBA``, with no side above `MAX_SIDE`; a batch as a grid.

    Reads a tensor from its device.

    Returns:
        The picture, and whether some value was outside of what is shown, and cut off.
    """
    from PIL import Image as images

    if _is_picture(image):
        return _shrunk(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA")), False
    if hasattr(image, "savefig"):
        buffer = BytesIO()
        image.savefig(buffer, format="png")
        return _shrunk(images.open(buffer).convert("RGB")), False
    pixels, cut = _bytes_of(_channels_last(image))
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _shrunk(images.fromarray(pixels.numpy())), cut


def _is_picture(image: Any) -> bool:
    return hasattr(image, "getbands") and hasattr(image, "convert")


def _channels_at(image: Any) -> int | None:
    """Which dimension of three, or of the last three of four, has the channels.

    Where two may have them, they are first in a tensor and last in an array, as is usual.
    """
    shape = image.shape[-3:]
    places = [place for place in (0, 2) if shape[place] in CHANNELS]
    if not places:
        return None
    return places[0 if isinstance(image, Tensor) else -1]


def _channels_last(image: Any) -> Tensor:
    """One image on the host: (H, W, C)."""
    place = _channels_at(image) if len(image.shape) > 2 else None
    if len(image.shape) == 4:
        image = image[:MAX_TILES]
    if isinstance(image, Tensor):
        host = image.detach().cpu()
    else:
        import numpy

        # A copy, as torch takes neither read-only arrays without a warning nor reversed ones.
        host = torch.from_numpy(numpy.array(image, order="C"))
    if host.dim() == 2:
        return host[..., None]
    if place == 0:
        host = host.movedim(-3, -1)
    return _grid(host) if host.dim() == 4 else host


def _grid(batch: Tensor) -> Tensor:
    """Images in rows, as many in each as there are rows, a black line between two."""
    count, height, width, channels = batch.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    canvas = batch.new_zeros(down * (height + 1) - 1, across * (width + 1) - 1, channels)
    for number, image in enumerate(batch):
        top, left = number // across * (height + 1), number % across * (width + 1)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _bytes_of(values: Tensor) -> tuple[Tensor, bool]:
    if values.dtype == torch.uint8:
        return values.contiguous(), False
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255, False
    values = values.float()
    # Rounding on the way here moves what is 1 beyond it.
    cut = not bool(((values >= -1e-3) & (values <= 1 + 1e-3)).all())
    return (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8), cut


def _shrunk(picture: Image) -> Image:
    factor = MAX_SIDE / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height))
