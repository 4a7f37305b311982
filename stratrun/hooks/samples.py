from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stratrun.errors import ConfigError
from stratrun.hooks.base import Hook
from stratrun.loggers.images import CHANNELS, MAX_TILES
from stratrun.registry import HOOKS

if TYPE_CHECKING:
    from stratrun.context import RunContext

Draw = Callable[[Any, Any], Any]


@HOOKS.register_module()
class SampleHook(Hook):
    """Shows some samples of a batch, and what the model makes of them, as images and text.

    Shown is the first batch of a validation or a test, as it is when its step is done, and in training that
    of every so many iterations; by the main process, of its share of the batch. Nothing is read in between.

    Args:
        every_vals: Show samples of each so-manieth validation, the first one included; None: of none.
        every_iters: Show samples of each so-manieth training iteration; None: of none.
        count: Of how many samples, at most.
        draw: ``draw(batch, outputs)`` returns an image, a text, or a mapping of names to these, as
            `log_image` and `log_text` take them; else `drawn` does. `batch` is where the model has it,
            `outputs` is what the step returned.
        name: What they are logged under, with the kind of the job: ``val/samples/images``.
    """

    # Behind the hooks that work on outputs.
    priority = 60
    goes_on: ClassVar[None] = None

    def __init__(
        self,
        every_vals: int | None = 1,
        *,
        every_iters: int | None = None,
        count: int = 8,
        draw: Draw | None = None,
        name: str = "samples",
    ) -> None:
        for option, value in (("every_vals", every_vals), ("every_iters", every_iters), ("count", count)):
            optional = value is None and option != "count"
            if not optional and (type(value) is not int or value < 1):
                raise ConfigError(f"SampleHook: {option}={value!r} must be a whole number of at least 1")
        if count > MAX_TILES:
            raise ConfigError(
                f"SampleHook: count={count} is more than one picture shows, which is {MAX_TILES}"
            )
        self.every_vals = every_vals
        self.every_iters = every_iters
        self.count = count
        self.draw = draw
        self.name = name
        self._vals = 0

    def after_train_iter(self, runner: RunContext, data_batch: Any, outputs: Any) -> None:
        if self.every_iters is not None and runner.iter % self.every_iters == 0:
            self._show(runner, "train", data_batch, outputs)

    def after_val_iter(self, runner: RunContext, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if batch_idx == 0 and self.every_vals is not None and self._vals % self.every_vals == 0:
            self._show(runner, "val", data_batch, outputs)

    def after_val(self) -> None:
        self._vals += 1

    def after_test_iter(self, runner: RunContext, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if batch_idx == 0:
            self._show(runner, "test", data_batch, outputs)

    def state_dict(self) -> dict[str, Any]:
        return {"vals": self._vals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._vals = state["vals"]

    def _show(self, runner: RunContext, kind: str, batch: Any, outputs: Any) -> None:
        if self.draw is None:
            drawable(batch)  # refused by every process, whichever of them would draw
        if not runner.loggers.loggers:
            return
        with torch.no_grad():
            shown = self.draw(batch, outputs) if self.draw else drawn(batch, outputs, self.count)
        named = shown if isinstance(shown, Mapping) else {"": shown}
        for part, one in named.items():
            name = "/".join(filter(None, (kind, self.name, str(part))))
            if isinstance(one, str):
                runner.log_text(name, one)
            elif one is not None:
                runner.log_image(name, one)


def drawn(batch: Any, outputs: Any, count: int) -> dict[str, Any]:
    """The first images of a batch as ``images``, and a line for each sample as ``text``.

    Images are the first floating point or uint8 tensor of shape (N, C, H, W) with 1, 3 or 4 channels; where
    its values are not from 0 to 1, each image is scaled from its least value to its largest. A line has what
    is one text or one number of each sample, and the class with the highest score, by its name in the batch
    and in the outputs: ``input``, ``target`` and ``output`` where there are no names.

    Raises:
        ConfigError: there are neither images nor texts in the batch.
    """
    inputs, images, size = drawable(batch)
    columns = {
        name: column
        for name, value in (*inputs.items(), *_named(outputs, ("output",)))
        if (column := _column(value, size, count)) is not None
    }
    shown: dict[str, Any] = {} if images is None else {"images": _scaled(images[:count].detach())}
    if columns:
        rows = zip(*columns.values(), strict=True)
        shown["text"] = "\n".join(
            f"{number}: " + ", ".join(f"{name}={value}" for name, value in zip(columns, row, strict=True))
            for number, row in enumerate(rows)
        )
    return shown


def drawable(batch: Any) -> tuple[dict[str, Any], Tensor | None, int]:
    """What is in a batch by name, its images, and the number of its samples; reads no value.

    Raises:
        ConfigError: there are neither images nor texts.
    """
    inputs = dict(_named(batch, ("input", "target")))
    images = next((value for value in inputs.values() if _are_images(value)), None)
    texts = next(filter(_texts, inputs.values()), None)
    first = texts if images is None else images
    if first is None:
        found = ", ".join(f"{name}: {_told(value)}" for name, value in inputs.items())
        raise ConfigError(
            f"SampleHook finds neither images (N, C, H, W) nor texts in the batch ({found}); "
            "say what to show with draw="
        )
    return inputs, images, len(first)


def _named(values: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        yield from ((str(name), value) for name, value in values.items())
    elif isinstance(values, tuple | list) and not _texts(values):
        for number, value in enumerate(values):
            yield names[number] if number < len(names) else str(number), value
    elif values is not None:
        yield names[0], values


def _texts(value: Any) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(one, str) for one in value)


def _are_images(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[1] not in CHANNELS:
        return False
    return value.is_floating_point() or value.dtype == torch.uint8


def _column(value: Any, size: int, count: int) -> list[str] | None:
    """Something short of each sample; None where there is nothing of the kind."""
    if _texts(value) and len(value) == size:
        return [repr(one) for one in value[:count]]
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or len(value) != size:
        return None
    value = value[:count].detach()
    if value.dim() == 2:
        if not value.is_floating_point() or value.shape[1] < 2:
            return None
        value = value.argmax(1)
    return [f"{one:.4g}" if isinstance(one, float) else str(one) for one in value.tolist()]


def _scaled(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        return images
    images = images.float()
    least, most = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    within = (least.min() >= 0) & (most.max() <= 1)
    return torch.where(within, images, (images - least) / (most - least).clamp(min=1e-12))


def _told(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
