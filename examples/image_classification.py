"""Handwritten digits, classified by a small convolutional network: 98 of 100 right after half a minute.

    python examples/image_classification.py

Or as a config, which finds the model and the data by the names that they are registered under here:

    stratrun train examples/configs/digits.yaml --import examples/image_classification.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stratrun import DATASETS, MODELS, Runner

EPOCHS = 8


@DATASETS.register_module()
class Digits(Dataset[tuple[Tensor, int]]):
    """1797 scanned digits of 8 x 8 pixels: eight tenths to train with, one to validate, one to test.

    Args:
        shift: Move each image by up to so many pixels, another way whenever it is read.
    """

    def __init__(self, split: str = "train", shift: int = 0) -> None:
        digits = load_digits()
        tenth = torch.arange(len(digits.target)) % 10
        chosen = {"train": tenth < 8, "val": tenth == 8, "test": tenth == 9}[split]
        self.images = torch.tensor(digits.images, dtype=torch.float32)[chosen].unsqueeze(1) / 16
        self.labels = digits.target[chosen.numpy()].tolist()
        self.shift = shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.shift:
            down, right = torch.randint(2 * self.shift + 1, (2,)).tolist()
            padded = F.pad(image, [self.shift] * 4)
            image = padded[:, down : down + 8, right : right + 8]
        return image, self.labels[index]


@MODELS.register_module()
class DigitNet(nn.Sequential):
    """Two convolutions and a linear layer."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 4 * 4, 10),
        )


def main() -> None:
    runner = Runner(
        DigitNet(),
        loss=nn.CrossEntropyLoss(label_smoothing=0.05),
        train_dataloader=dict(dataset=Digits("train", shift=1), global_batch_size=64),
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS),
        optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.01),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=EPOCHS),
        val_dataloader=dict(dataset=Digits("val"), batch_size=128),
        val_evaluator=dict(type="Accuracy"),
        test_dataloader=dict(dataset=Digits("test"), batch_size=128),
        test_evaluator=dict(type="Accuracy"),
        default_hooks=dict(checkpoint=dict(save_best="accuracy")),
        randomness=dict(seed=0),
    )
    runner.train()
    runner.test()


if __name__ == "__main__":
    main()
