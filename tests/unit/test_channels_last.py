"""With `channels_last`, images and their weights lie in memory with channels last; results are as before."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from tests.problems import perceptron, points, trained

LAST = torch.channels_last


class Images(nn.Module):
    """Notes how its inputs and gradients lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(64, 2)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images).relu()
        self.seen.append(
            (images.is_contiguous(memory_format=LAST), found.is_contiguous(memory_format=LAST)),
        )
        scores: Tensor = self.last(found.flatten(1))
        return scores


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 6, 6, generator=generator), torch.randint(2, (4,), generator=generator))
        for _ in range(6)
    ]


def _run(work_dir: Path, epochs: int, **options: Any) -> Runner:
    runner = Runner(
        Images(),
        work_dir=work_dir,
        loss="cross_entropy",
        train_dataloader=_batches(),
        val_dataloader=_batches(),
        val_evaluator="Accuracy",
        train_cfg={"max_epochs": epochs},
        optimizer={"type": "AdamW", "lr": 0.01},
        loggers=(),
        env_cfg={"channels_last": True},
        **options,
    )
    runner.train()
    runner.close()
    return runner


def test_a_run_in_this_layout_comes_to_the_weights_of_a_plain_loop_and_does_so_resumed(
    tmp_path: Path,
) -> None:
    truth = Images()
    optimizer = torch.optim.AdamW(truth.parameters(), lr=0.01)
    for inputs, targets in _batches() * 2:
        optimizer.zero_grad()
        cross_entropy(truth(inputs), targets).backward()
        optimizer.step()

    whole = _run(tmp_path / "whole", 2)
    model: Any = whole.model
    assert all(map(all, model.seen)) and len(model.seen) == 24
    weight, state = model.conv.weight, whole.engine.optimizers["optimizer"].state
    assert weight.is_contiguous(memory_format=LAST) and not weight.is_contiguous()
    assert state[weight]["exp_avg"].stride() == weight.stride()
    torch.testing.assert_close(dict(whole.model.state_dict()), dict(truth.state_dict()), rtol=1e-4, atol=1e-5)
    assert any(reason.startswith("channels_last: 1 weights") for reason in whole.reasons)

    _run(tmp_path / "parts", 1)
    resumed = _run(tmp_path / "parts", 2, resume=True)
    # State from a file lies as its parameters do: fused kernels would make something else of it.
    torch.testing.assert_close(
        dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0.0, atol=0.0
    )


def test_a_model_without_such_weights_goes_on_and_says_so() -> None:
    runner = trained(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(8), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer="SGD",
        env_cfg={"channels_last": True},
    )
    assert any("no weight of the model has four dimensions" in reason for reason in runner.reasons)
