"""A small GPT that learns to write like Python's own help texts, one character at a time.

    python examples/char_gpt.py

The text is part of every Python installation: what ``help("if")`` shows. Training counts iterations, not
epochs, and losses are means over characters, as each step says in `weight` how many stand behind its loss.
"""

import math
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stratrun import METRICS, MeanMetric, Runner

ITERATIONS, CONTEXT, PAD = 250, 64, -1
TEXT = "\n\n".join(topics.values())
ALPHABET = sorted(set(TEXT))
NUMBER = {character: number for number, character in enumerate(ALPHABET)}


def encode(text: str) -> Tensor:
    return torch.tensor([NUMBER[character] for character in text])


class Passages(Dataset[Tensor]):
    """A text cut into passages of one length, each with the first character of the next."""

    def __init__(self, text: str) -> None:
        self.numbers = encode(text)

    def __len__(self) -> int:
        return math.ceil((len(self.numbers) - 1) / CONTEXT)

    def __getitem__(self, index: int) -> Tensor:
        passage = self.numbers[index * CONTEXT :][: CONTEXT + 1]
        return F.pad(passage, (0, CONTEXT + 1 - len(passage)), value=PAD)  # the last one is shorter


class Block(nn.Module):
    """Attention to what came before, then a little network for each character."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """Methods named after steps tell the runner what to do; `forward` stays what it is in any GPT."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.blocks(self.characters(numbers) + self.places[: numbers.shape[1]]))

    def train_step(self, passages: Tensor) -> dict[str, Tensor]:
        inputs, targets = passages[:, :-1], passages[:, 1:]
        logits = self(inputs.clamp_min(0))  # what follows padding is padding, and not looked at
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
        return {"loss": loss, "weight": (targets != PAD).sum()}

    val_step = train_step

    def predict_step(self, texts: Tensor) -> Tensor:
        for _ in range(200):
            logits = self(texts[:, -CONTEXT:])[:, -1]
            following = torch.multinomial(F.softmax(logits / 0.7, dim=-1), num_samples=1)
            texts = torch.cat([texts, following], dim=1)
        return texts


@METRICS.register_module()
class CharacterPerplexity(MeanMetric):
    """Between how many characters, equally likely, the model still wavers on average."""

    def compute(self) -> dict[str, float]:
        mean = super().compute()
        return mean | {"perplexity": math.exp(mean["loss"])}


def main() -> None:
    end = len(TEXT) * 95 // 100
    runner = Runner(
        CharGPT(),
        train_dataloader=dict(dataset=Passages(TEXT[:end]), global_batch_size=32, drop_last=True),
        train_cfg=dict(by_epoch=False, max_iters=ITERATIONS, val_interval=125),
        optimizer=dict(type="AdamW", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
        param_scheduler=dict(type="OneCycleLR", max_lr=3e-3, total_steps=ITERATIONS, by_epoch=False),
        clip_grad=1.0,
        val_dataloader=dict(dataset=Passages(TEXT[end:]), batch_size=64),
        val_evaluator=dict(type="CharacterPerplexity"),
        predict_dataloader=dict(dataset=[encode("The "), encode("A cl")], batch_size=2),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=125)),
        strategy="auto",  # "fsdp" spreads the model over the processes, "ddp" copies it to each
        randomness=dict(seed=0),
    )
    runner.train()
    for text in runner.predict():
        runner.loggers.say("--- " + "".join(ALPHABET[number] for number in text))


if __name__ == "__main__":
    main()
