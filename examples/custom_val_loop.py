"""A validation loop over two data sets, and a hook at a point that only this loop has.

    python examples/custom_val_loop.py

The model is trained on clean digits, and measured on clean ones and on noisy ones; the hook tells how sure of
itself it is on the noisy ones.
"""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from stratrun import DATASETS, HOOKS, LOOPS, BaseLoop, Hook, RunContext, Runner


@DATASETS.register_module()
class NoisyDigits(Dataset[tuple[Tensor, Tensor]]):
    """Handwritten digits, with noise on every pixel that is another whenever it is read."""

    def __init__(self, split: str, noise: float = 0.0) -> None:
        digits = load_digits()
        part = slice(1500) if split == "train" else slice(1500, None)
        self.images = torch.tensor(digits.data[part], dtype=torch.float32) / 16
        self.labels = torch.tensor(digits.target[part])
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return image + self.noise * torch.randn_like(image), self.labels[index]


@LOOPS.register_module()
class CustomValLoop(BaseLoop):
    """Validates on a second data set after the first."""

    def __init__(self, runner: RunContext, dataloader: Any, evaluator: Any, dataloader2: Any) -> None:
        super().__init__(runner, dataloader, evaluator)
        self.dataloader2 = runner.build_dataloader(dataloader2)

    def run(self) -> None:
        self.runner.call_hooks("before_val_epoch")
        for idx, data_batch in enumerate(self.dataloader):
            self.runner.call_hooks("before_val_iter", batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            self.runner.call_hooks("after_val_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        metric = self.evaluator.evaluate()

        for idx, data_batch in enumerate(self.dataloader2):
            self.runner.call_hooks("before_valloader2_iter", batch_idx=idx, data_batch=data_batch)
            outputs = self.run_iter(idx, data_batch)
            self.runner.call_hooks(
                "after_valloader2_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
            )
        metric2 = self.evaluator.evaluate()

        self.runner.metrics = metric | {f"noisy/{name}": value for name, value in metric2.items()}
        self.runner.call_hooks("after_val_epoch", metrics=self.runner.metrics)


@HOOKS.register_module()
class CustomValHook(Hook):
    """Logs how probable the model thinks its answers on the second data set are."""

    def before_val_epoch(self) -> None:
        self.confidence, self.samples = torch.zeros(()), 0

    def after_valloader2_iter(self, outputs: dict[str, Tensor]) -> None:
        answers = outputs["preds"].softmax(dim=1).amax(dim=1)
        self.confidence = self.confidence.to(answers) + answers.sum()
        self.samples += len(answers)

    def after_val_epoch(self, runner: RunContext) -> None:
        # Each process saw a part of the samples; a mean of sums is right whatever part that was.
        means = runner.engine.mean({"confidence": float(self.confidence), "samples": self.samples})
        runner.log({"noisy/confidence": means["confidence"] / means["samples"]}, kind="val")


def main() -> None:
    runner = Runner(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        loss="cross_entropy",
        train_dataloader=dict(dataset=dict(type="NoisyDigits", split="train"), global_batch_size=50),
        train_cfg=dict(by_epoch=True, max_epochs=12, val_interval=3),
        optimizer=dict(type="AdamW", lr=3e-3),
        val_dataloader=dict(dataset=dict(type="NoisyDigits", split="val"), batch_size=128),
        val_evaluator=dict(type="Accuracy"),
        val_cfg=dict(
            type="CustomValLoop",
            dataloader2=dict(dataset=dict(type="NoisyDigits", split="val", noise=0.3), batch_size=128),
        ),
        custom_hooks=[dict(type="CustomValHook")],
        randomness=dict(seed=0),
    )
    runner.train()


if __name__ == "__main__":
    main()
