"""A GAN: two networks with an optimizer each, which a training loop of its own updates in turns.

    python examples/gan.py

The loop says what is done with one batch and nothing else; epochs, hooks, checkpoints and resuming are those
of the loop that it derives from. A metric tells how far drawn digits are from scanned ones.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from stratrun import LOOPS, METRICS, EpochBasedTrainLoop, Metric, Runner

EPOCHS, NOISE, WIDTH, PIXELS = 30, 16, 128, 64


class DigitGAN(nn.Module):
    """The generator draws digits of 8 x 8 pixels, the discriminator tells them from scanned ones.

    A method ``<mode>_step`` is what ``engine.forward(batch, mode)`` calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(NOISE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PIXELS)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )

    def draw(self, count: int) -> Tensor:
        noise = torch.randn(count, NOISE).to(self.generator[0].weight)
        return self.generator(noise).sigmoid()

    def score(self, images: Tensor) -> Tensor:
        # Grainy images, because it would soon know 1500 clean ones by heart.
        return self.discriminator(images + 0.5 * torch.randn_like(images))

    def discriminator_step(self, scanned: Tensor) -> Tensor:
        """The loss of the discriminator: scanned digits are to score above 0, drawn ones below."""
        drawn = self.draw(len(scanned)).detach()
        return (F.softplus(-self.score(scanned)) + F.softplus(self.score(drawn))).mean()

    def generator_step(self, scanned: Tensor) -> Tensor:
        """The loss of the generator: what it draws is to score above 0."""
        return F.softplus(-self.score(self.draw(len(scanned)))).mean()

    def val_step(self, scanned: Tensor) -> Tensor:
        return self.draw(len(scanned))


@LOOPS.register_module()
class GANTrainLoop(EpochBasedTrainLoop):
    """One update of the discriminator, then one of the generator, on every batch."""

    def run_iter(self, idx: int, data_batch: Tensor) -> dict[str, Tensor]:
        engine = self.runner.engine
        losses = {}
        for player in ("discriminator", "generator"):
            loss = engine.forward(data_batch, player)
            engine.update(loss, optimizer=player)
            losses[f"{player}_loss"] = loss.detach()
        return losses


@METRICS.register_module()
class SlicedDistance(Metric):
    """How far drawn images are from scanned ones as a whole: how far their shadows are on many lines."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("drawn", [])
        self.add_state("scanned", [])

    def arguments(self, outputs: Tensor, batch: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return outputs, batch

    def update(self, drawn: Tensor, scanned: Tensor) -> None:
        self.drawn.append(drawn)
        self.scanned.append(scanned)

    def compute(self) -> Tensor:
        lines = torch.randn(PIXELS, 256, generator=torch.Generator().manual_seed(0))
        lines /= lines.norm(dim=0)
        drawn, scanned = (torch.cat(images).cpu() @ lines for images in (self.drawn, self.scanned))
        return (drawn.sort(dim=0).values - scanned.sort(dim=0).values).abs().mean()


def main() -> None:
    digits = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    adam = dict(type="Adam", lr=4e-3, betas=(0.0, 0.999))
    runner = Runner(
        DigitGAN(),
        train_dataloader=dict(dataset=digits[:1500], global_batch_size=50),
        train_cfg=dict(type="GANTrainLoop", max_epochs=EPOCHS, val_interval=5),
        optimizer=dict(
            discriminator=dict(**adam, params="discriminator"),
            generator=dict(**adam, params="generator"),
        ),
        val_dataloader=dict(dataset=digits[1500:], batch_size=100),
        val_evaluator=dict(type="SlicedDistance"),
        default_hooks=dict(checkpoint=dict(interval=5)),
        randomness=dict(seed=0),
    )
    runner.train()


if __name__ == "__main__":
    main()
