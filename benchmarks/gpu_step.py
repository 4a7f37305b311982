"""A step on a GPU under each way to make it: `python benchmarks/gpu_step.py [--small] [--json PATH]`.

A GPT of 124 million parameters in bf16, an MLP and a small CNN: bare loops, eager and compiled, beside
stratrun eager, compiled and captured, and peers that are installed. `--small` shows the program to work
without a GPU: tiny models, which are traced and not compiled, and nothing captured.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measure import Figures, machine, percentile, told, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner

Batch = tuple[Tensor, Tensor]
LEARNING_RATE = 2.0**-10


class GPT(nn.Module):
    """A decoder with learnt positions, of which targets are the next tokens."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        parts = self.mixed(self.first(x)).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(count, length, width))
        wide: Tensor = self.wide(self.second(x))
        return x + wide


@dataclass
class Work:
    """A model and how its batches are made."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    autocasts: bool = False


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def _cnn(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def _tokens(vocabulary: int, count: int, length: int) -> Batch:
    tokens = torch.randint(vocabulary, (count, length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def works(small: bool) -> list[Work]:
    size = (64, 32, 2, 2, 16) if small else (50304, 768, 12, 12, 1024)
    width, images = (8, 4) if small else (64, 128)
    gpt = partial(_tokens, size[0], 2 if small else 8, size[4])
    return [
        Work(f"GPT of {'16 K' if small else '124 M'}, bf16", partial(GPT, *size), gpt, autocasts=True),
        Work("MLP", partial(_mlp, 64), lambda: (torch.randn(32, 32), torch.randint(10, (32,)))),
        Work(
            "CNN",
            partial(_cnn, width),
            lambda: (torch.randn(images, 3, 32, 32), torch.randint(10, (images,))),
        ),
    ]


@dataclass
class Timed:
    """Batches on the device, read by blocks of steps; the device is waited for between blocks."""

    batches: list[Batch]
    block: int
    blocks: int

    def __post_init__(self) -> None:
        self.marks: list[float] = []

    def __len__(self) -> int:
        return self.block * (self.blocks + 2)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            if number % self.block == 0:
                self._mark()
            yield self.batches[number % len(self.batches)]
        self._mark()

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(perf_counter())

    def per_step(self) -> list[float]:
        """Microseconds of each block but the first two, in which things are compiled and captured."""
        pairs = zip(self.marks[2:], self.marks[3:], strict=False)
        return [(after - before) / self.block * 1e6 for before, after in pairs]


def bare(work: Work, data: Timed, device: str, folder: str, backend: str | None) -> nn.Module:
    model = work.model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model(inputs), targets)

    call = torch.compile(loss_of, backend=backend) if backend else loss_of
    for inputs, targets in data:
        with torch.autocast(device, torch.bfloat16, enabled=work.autocasts):
            loss = call(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def ours(work: Work, data: Timed, device: str, folder: str, **options: Any) -> nn.Module:
    model = work.model()
    runner = Runner(
        model,
        loss="cross_entropy",
        train_dataloader=data,
        train_cfg={"max_epochs": 1},
        optimizer={"type": "AdamW", "lr": LEARNING_RATE, "fused": True},
        precision="bf16-mixed" if work.autocasts else "32-true",
        accelerator=device,
        work_dir=folder,
        default_hooks={"checkpoint": None},
        loggers=[],
        **options,
    )
    runner.train()
    runner.close()
    return model


def accelerated(work: Work, data: Timed, device: str, folder: str) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if work.autocasts else "no")
    model = work.model()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    for inputs, targets in data:
        with accelerator.autocast():
            loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    unwrapped: nn.Module = accelerator.unwrap_model(model)
    return unwrapped


def fabric(work: Work, data: Timed, device: str, folder: str) -> nn.Module:
    from lightning_fabric import Fabric

    made = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if work.autocasts else "32-true")
    model = work.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    wrapped, optimizer = made.setup(model, optimizer)
    for inputs, targets in data:
        with made.autocast():
            loss = cross_entropy(wrapped(inputs), targets)
        optimizer.zero_grad()
        made.backward(loss)
        optimizer.step()
    return model


Way = Callable[[Work, Timed, str, str], nn.Module]


def ways(device: str, peers: bool) -> dict[str, Way]:
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = {"step": True, "backend": backend}
    found: dict[str, Way] = {
        "bare, eager again": partial(bare, backend=None),
        "bare, compiled": partial(bare, backend=backend),
        "stratrun, eager": ours,
        "stratrun, compile=dict(step=True)": partial(ours, compile=compiled),
    }
    if device == "cuda":
        found["stratrun, compile=dict(graphs=True)"] = partial(ours, compile={"graphs": True})
        found["stratrun, compile=dict(step=True, graphs=True)"] = partial(
            ours, compile={**compiled, "graphs": True}
        )
    for module, name, way in (
        ("accelerate", "accelerate, eager", accelerated),
        ("lightning_fabric", "lightning-fabric, eager", fabric),
    ):
        with contextlib.suppress(ImportError):
            if peers:
                __import__(module)
                found[name] = way
    return found


def once(work: Work, way: Way, given: argparse.Namespace, device: str) -> tuple[list[float], list[Tensor]]:
    torch.manual_seed(0)
    data = Timed([_on(work.batch(), device) for _ in range(4)], given.block, given.blocks)
    torch.manual_seed(1)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        model = way(work, data, device, folder)
    return data.per_step(), [parameter.detach().float() for parameter in model.parameters()]


def _on(batch: Batch, device: str) -> Batch:
    return batch[0].to(device), batch[1].to(device)


def compared(work: Work, given: argparse.Namespace, device: str) -> dict[str, Figures]:
    """Each way next to the bare loop, in turns.

    Raises:
        SystemExit: one has not trained as the bare loop has.
    """
    plain: Way = partial(bare, backend=None)
    found: dict[str, Figures] = {}
    for _ in range(given.rounds):
        for name, way in ways(device, not given.no_peers).items():
            torch.compiler.reset()
            other, expected = once(work, plain, given, device)
            own, result = once(work, way, given, device)
            found.setdefault(name, Figures(name)).add(own, other)
            worst = max(float((a - b).abs().max()) for a, b in zip(result, expected, strict=True))
            # AdamW moves a weight by the rate at most, whatever rounding has made of its gradient.
            if worst > LEARNING_RATE * given.block * (given.blocks + 2) / 2:
                raise SystemExit(f"{work.name}: {name} did not do what the bare loop does: {worst} apart")
    return found


def table(everything: dict[str, dict[str, Figures]]) -> str:
    lines = [
        "| a step of | µs | p5 to p95 | of bare, eager | p5 to p95 |",
        "|---|---|---|---|---|",
    ]
    for work, found in everything.items():
        for name, one in found.items():
            own = one.summary()
            lines.append(
                f"| {work}: {name} | {statistics.median(one.own):.0f} | {own['p5']:.0f} to {own['p95']:.0f} "
                f"| {own['ratio']:.3f} | {own['ratio_p5']:.2f} to {percentile(one.ratios, 95):.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny, for a machine without a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--blocks", type=int, default=5, help="blocks that are timed in a run")
    parser.add_argument("--block", type=int, default=20, help="steps in a block")
    parser.add_argument("--no-peers", action="store_true", help="without other frameworks")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--work", nargs="*", choices=["GPT", "MLP", "CNN"], help="only these")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        parser.error("there is no GPU here; --small shows that the program works")
    if given.small:
        torch.set_num_threads(1)
    device = "cpu" if given.small else "cuda"
    chosen = [work for work in works(given.small) if not given.work or work.name[:3] in given.work]
    found = {work.name: compared(work, given, device) for work in chosen}
    print(told(machine()))
    print()
    print(table(found))
    figures = {work: {name: one.summary() for name, one in some.items()} for work, some in found.items()}
    write(given.json, {"a step on a GPU": figures})


if __name__ == "__main__":
    main()
