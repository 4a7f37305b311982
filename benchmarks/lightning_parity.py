"""The example of Lightning's README, once with Lightning and once with the import line changed.

``python -m benchmarks.lightning_parity`` prints both loss curves, the largest difference of the weights and
the lines that differ. It fails if there are more than five of these, or if the curves differ. Pictures are
drawn at random, as nothing is downloaded. Needs ``pip install lightning``.
"""

import argparse
import contextlib
import difflib
import io
import logging
import sys
import tempfile
import warnings
from typing import Any

import torch

MOST_LINES = 5
THEIRS = "import lightning as L"
OURS = "from stratrun_ext.migrate import lightning as L"

PROGRAM = """
import torch, torch.nn as nn, torch.utils.data as data, torch.nn.functional as F
import lightning as L

class LitAutoEncoder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 128), nn.ReLU(), nn.Linear(128, 28 * 28))

    def forward(self, x):
        embedding = self.encoder(x)
        return embedding

    def training_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        z = self.encoder(x)
        x_hat = self.decoder(z)
        loss = F.mse_loss(x_hat, x)
        self.log("train_loss", loss)
        curve.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        return optimizer

dataset = pictures()
train, val = data.random_split(dataset, [550, 50])
autoencoder = LitAutoEncoder()
trainer = L.Trainer(max_epochs=2, accelerator="cpu")
trainer.fit(autoencoder, data.DataLoader(train), data.DataLoader(val))
"""
MIGRATED = PROGRAM.replace(THEIRS, OURS)


def pictures() -> torch.utils.data.TensorDataset:
    """As many as the example trains with in a second: a few strokes each."""
    generator = torch.Generator().manual_seed(0)
    strokes = torch.rand(600, 5, 28, 1, generator=generator) * torch.rand(600, 5, 1, 28, generator=generator)
    return torch.utils.data.TensorDataset(strokes.amax(1, keepdim=True), torch.zeros(600))


def run(program: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the weights of a program, run in an empty folder."""
    curve: list[float] = []
    names: dict[str, Any] = {"curve": curve, "pictures": pictures, "__name__": "example"}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(program, names)
    return curve, names["autoencoder"].state_dict()


def changed(before: str, after: str) -> list[str]:
    """The lines of the second that the first has not."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[2:] for line in lines if line.startswith("+ ")]


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lines = changed(PROGRAM, MIGRATED)
    print(f"{len(lines)} changed line(s): {'; '.join(lines)}")
    ours, weights = run(MIGRATED)
    theirs, truth = run(PROGRAM)
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    furthest = max(float((weights[name] - value).abs().max()) for name, value in truth.items())
    for at in range(0, len(theirs), len(theirs) // 10):
        print(f"step {at:5}  lightning {theirs[at]:.8f}  stratrun {ours[at]:.8f}")
    print(f"{len(theirs)} steps; losses differ by at most {apart:.3g}, weights by {furthest:.3g}")
    return int(len(lines) > MOST_LINES or apart > 0 or furthest > 0)


if __name__ == "__main__":
    sys.exit(main())
