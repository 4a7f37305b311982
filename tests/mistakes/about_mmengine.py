"""What goes wrong on the way from MMEngine."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratrun.errors import CheckpointError, ConfigError, ModelError
from stratrun_ext.migrate.mmengine import BaseModel
from stratrun_ext.migrate.mmengine.checkpoint import migrate_checkpoint
from stratrun_ext.migrate.mmengine.convert import convert
from tests.mistakes.mistake import mistake, train


class Net(BaseModel):
    """A model in MMEngine's form whose losses are given."""

    def __init__(self, losses: Any, **options: Any) -> None:
        super().__init__(**options)
        self.net, self.losses = nn.Linear(4, 3), losses

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        outputs = self.net(inputs)
        return self.losses(outputs) if mode == "loss" else outputs


def train_on(folder: Path, losses: Any) -> None:
    train(folder, model=Net(losses), loss=None, val_dataloader=None, val_evaluator=None)


def a_config_in_the_new_style(folder: Path) -> None:
    (folder / "new.py").write_text("with read_base():\n    from .base import *\n")


def a_config(folder: Path) -> None:
    (folder / "resnet.py").write_text("model = dict(type='ResNet')\n")


def a_checkpoint_without_weights(folder: Path) -> None:
    torch.save({"epoch": 3}, folder / "log.pth")


@mistake(ModelError, "'cross_entropy'", "no name contains 'loss'", "rename", shows="running")
def a_model_of_mmengine_names_no_loss(folder: Path) -> None:
    train_on(folder, lambda outputs: {"cross_entropy": outputs.mean()})


@mistake(ModelError, "float as 'loss'", "must be a tensor", ".item()", shows="running")
def a_model_of_mmengine_reads_its_loss(folder: Path) -> None:
    train_on(folder, lambda outputs: {"loss": float(outputs.detach().mean())})


@mistake(ModelError, "returned a Tensor", "must return a dict of losses", shows="running")
def a_model_of_mmengine_returns_a_bare_loss(folder: Path) -> None:
    train_on(folder, lambda outputs: outputs.mean())


@mistake(ModelError, "optim_wrapper", "return the losses from train_step(self, data)")
def a_model_of_mmengine_makes_its_own_update(folder: Path) -> None:
    type("Gan", (Net,), {"train_step": lambda self, data, optim_wrapper: None})


@mistake(ConfigError, "init_cfg={'type': 'Pretrained'}", "load_from=")
def a_model_of_mmengine_is_to_load_its_weights(folder: Path) -> None:
    Net(None, init_cfg={"type": "Pretrained"})


@mistake(ConfigError, "new.py:1", "read_base()", ".dump('plain.py')", prepare=a_config_in_the_new_style)
def a_config_of_mmengine_inherits_by_importing(folder: Path) -> None:
    convert(folder / "new.py")


@mistake(ConfigError, "resnt.py", "did you mean 'resnet.py'", prepare=a_config)
def the_config_of_mmengine_is_misspelt(folder: Path) -> None:
    convert(folder / "resnt.py")


@mistake(
    CheckpointError, "log.pth", "no weights in 'state_dict'", "'epoch'", prepare=a_checkpoint_without_weights
)
def the_checkpoint_of_mmengine_has_no_weights(folder: Path) -> None:
    migrate_checkpoint(folder / "log.pth", folder / "out.safetensors")
