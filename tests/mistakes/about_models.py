"""The model, and what its training step returns."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratrun.errors import ConfigError, ModelError, UnknownNameError
from stratrun.testing.process_state import isolated
from tests.mistakes.mistake import mistake, train


class Net(nn.Module):
    """A model that trains itself; what its step returns is up to the case."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.answer = answer

    def forward(self, points: Tensor) -> Tensor:
        outputs: Tensor = self.linear(points)
        return outputs

    def train_step(self, batch: Any) -> Any:
        outputs = self(batch[0])
        return self.answer(nn.functional.cross_entropy(outputs, batch[1]), outputs)


class Typed(nn.Module):
    """A model whose forward takes tokens and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, mask: Tensor, length: Tensor) -> Tensor:
        raise AssertionError


@mistake(ConfigError, "model: Linear", "Linear", "class", "object")
def the_model_is_a_class(folder: Path) -> None:
    train(folder, model=nn.Linear)


@mistake(ConfigError, "model=None", "nn.Module")
def the_model_is_none(folder: Path) -> None:
    train(folder, model=None)


@mistake(UnknownNameError, "model='resnet18'", "torch.nn")
def the_model_is_a_string(folder: Path) -> None:
    train(folder, model="resnet18")


@mistake(ConfigError, "model: make gave NoneType", "nn.Module", shows="built")
def the_function_that_makes_the_model_returns_nothing(folder: Path) -> None:
    def make() -> None:
        nn.Linear(4, 3)

    train(folder, model=make)


@mistake(ConfigError, "model", "Linear", "in_features")
def an_argument_of_the_model_is_misspelt(folder: Path) -> None:
    train(folder, model={"type": "Linear", "in_feature": 4, "out_features": 3})


@mistake(ModelError, "Linear", "loss=", "'cross_entropy'", shows="running")
def the_loss_is_missing(folder: Path) -> None:
    train(folder, loss=None)


@mistake(ConfigError, "loss=7", "function")
def the_loss_is_a_number(folder: Path) -> None:
    train(folder, loss=7)


@mistake(ModelError, "loss", "shape (4,)", ".mean()", shows="running")
def the_loss_is_not_reduced(folder: Path) -> None:
    train(folder, loss=nn.CrossEntropyLoss(reduction="none"))


@mistake(ModelError, "loss", "returned None", "return a tensor", shows="running")
def the_loss_function_returns_none(folder: Path) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> None:
        nn.functional.cross_entropy(outputs, targets)

    train(folder, loss=loss)


@mistake(ModelError, "Net", "returned None", "return the loss", shows="running")
def the_training_step_returns_none(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: None))


@mistake(ModelError, "Net", "float", ".item()", shows="running")
def the_training_step_returns_a_float(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: loss.item()))


@mistake(ModelError, "Net", "no parameter", ".detach()", shows="running")
def the_loss_is_detached(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: loss.detach()))


@mistake(ModelError, "Net", "'total'", "'loss'", shows="running")
def the_training_step_calls_its_loss_otherwise(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: {"total": loss}))


@mistake(ModelError, "Net", "'loss_cls', 'loss_box'", "'loss'", shows="running")
def the_training_step_returns_parts_of_a_loss(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: {"loss_cls": loss, "loss_box": loss}))


@mistake(ModelError, "Net", "outputs", "(4, 3)", "loss", shows="running")
def the_training_step_returns_the_outputs(folder: Path) -> None:
    train(folder, model=Net(lambda loss, outputs: outputs))


@mistake(ConfigError, "requires a gradient", "requires_grad_(True)", shows="built")
def every_parameter_is_frozen(folder: Path) -> None:
    train(folder, model=nn.Linear(4, 3).requires_grad_(False))


@mistake(ModelError, "forward", "tokens", "mask", "length", shows="running")
def the_model_takes_other_arguments(folder: Path) -> None:
    train(folder, model=Typed())


class Unordered(nn.Module):
    """Writes to places in no order."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs).put_(torch.arange(inputs.numel()), inputs)


@mistake(
    RuntimeError,
    "put_",
    "in Unordered '1' of the model",
    "take another one",
    "deterministic='warn'",
    shows="running",
)
def an_operation_is_not_deterministic(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Unordered())
    with isolated():
        train(folder, model=model, randomness={"seed": 1, "deterministic": True})


@mistake(ConfigError, "deterministic='wran'", "True, False or 'warn'", "refuses")
def the_kind_of_deterministic_mode_is_misspelt(folder: Path) -> None:
    train(folder, randomness={"deterministic": "wran"})


@mistake(ModelError, "Lit", "training_step, which nothing here calls", "train_step(batch)", shows="running")
def a_model_has_the_step_of_lightning(folder: Path) -> None:
    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, points: Tensor) -> Tensor:
            return self.net(points)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    train(folder, model=Lit(), loss=None)
