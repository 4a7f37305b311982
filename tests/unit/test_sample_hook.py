"""Samples of batches, shown as images and text: when, of which batch, and by whom."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stratrun import Logger, Runner
from stratrun.errors import ConfigError
from stratrun.hooks import Hook, SampleHook
from stratrun.hooks.samples import drawn

STRATEGIES = ["single", "ddp", "fsdp"]


class Digits(nn.Module):
    """Two classes of images of 4 x 4: dark above, or dark below."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def train_step(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"])

    def val_step(self, batch: Any) -> Any:
        return {"preds": self.layer(batch["image"].flatten(1)), "target": batch["label"]}


class Pictures(torch.utils.data.Dataset[Any]):
    """Sample n has the grey n / 20 in its upper or its lower half."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, Any]:
        image = torch.zeros(1, 4, 4)
        image[:, 2 * (n % 2) : 2 * (n % 2) + 2] = n / 20
        return {"image": image, "label": n % 2}


class Shown(Logger):
    """Keeps images and texts."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, Any]] = []

    def log(self, record: Any) -> None: ...

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.shown.append((name, step, image))

    def log_text(self, name: str, text: str, step: int) -> None:
        self.shown.append((name, step, text))


def run(
    work_dir: str,
    *,
    strategy: str = "single",
    stop_at: int | None = None,
    resume: bool = False,
    **options: Any,
) -> list[tuple[str, int, Any]]:
    """Train for 4 epochs of 2 iterations each; what was shown, on the main process."""

    class Stops(Hook):
        """Ends the job after the iteration."""

        priority = 90

        def after_train_iter(self, runner: Any) -> None:
            if runner.iter == stop_at:
                runner.save_checkpoint()
                runner.request("stop", agreed=True)

    shown = Shown()
    torch.manual_seed(0)
    runner = Runner(
        Digits(),
        work_dir=work_dir,
        strategy=strategy,
        train_dataloader={"dataset": Pictures(16), "global_batch_size": 8, "shuffle": False},
        train_cfg={"max_epochs": 4},
        optimizer={"type": "SGD", "lr": 0.1},
        val_dataloader={"dataset": Pictures(12), "global_batch_size": 8},
        val_evaluator={"type": "Accuracy"},
        loggers=[shown],
        default_hooks={"checkpoint": {"interval": 1000, "by_epoch": False}},
        custom_hooks=[{"type": "SampleHook", **options}, Stops()],
        resume=resume,
    )
    runner.train()
    runner.close()
    return [(name, step, image_of(one)) for name, step, one in shown.shown]


def image_of(one: Any) -> Any:
    return (one.size, one.tobytes()) if isinstance(one, Image.Image) else one


def refused_on_rank(work_dir: str) -> str:
    try:
        trained = Runner(
            nn.Linear(3, 2),
            loss="cross_entropy",
            work_dir=work_dir,
            strategy="ddp",
            train_dataloader={"dataset": [(torch.zeros(3), 1)] * 8, "global_batch_size": 4},
            train_cfg={"max_epochs": 1},
            optimizer={"type": "SGD", "lr": 0.1},
            loggers=["files"],
            custom_hooks=[{"type": "SampleHook", "every_iters": 1}],
            default_hooks={"checkpoint": None},
        )
        trained.train()
    except ConfigError as error:
        return str(error)
    return "not refused"


def shown_on_rank(work_dir: str, strategy: str) -> list[tuple[str, int, Any]]:
    return run(work_dir, strategy=strategy, count=2)


def grid(*numbers: int) -> bytes:
    """The images side by side, a black line between two, by hand."""
    rows = []
    for row in range(4):
        halves = [bytes([round(n / 20 * 255) if row // 2 == n % 2 else 0] * 4) for n in numbers]
        rows.append(b"\0".join(halves))
    return b"".join(rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_samples_of_each_validation_are_shown_by_the_main_process(
    strategy: str, tmp_path: Path, two_ranks: Any
) -> None:
    if strategy == "single":
        every = [shown_on_rank(str(tmp_path), strategy)]
    else:
        every = two_ranks(shown_on_rank, str(tmp_path), strategy)
    assert all(one == [] for one in every[1:])
    images = [(step, one) for name, step, one in every[0] if name == "val/samples/images"]
    assert [step for step, _ in images] == [2, 4, 6, 8]
    # Of two processes the first has each other sample.
    numbers = (0, 1) if strategy == "single" else (0, 2)
    assert {one for _, one in images} == {((9, 4), grid(*numbers))}
    texts = [one for name, _, one in every[0] if name == "val/samples/text"]
    assert len(texts) == 4
    assert all(
        line.startswith(f"{place}: label={number % 2}, preds=") and line[-1] == str(number % 2)
        for text in texts
        for place, (number, line) in enumerate(zip(numbers, text.splitlines(), strict=True))
    )


def test_so_many_validations_and_iterations_are_left_out(tmp_path: Path) -> None:
    shown = run(str(tmp_path), every_vals=3, every_iters=5)
    kinds = [(name.partition("/")[0], step) for name, step, _ in shown if name.endswith("images")]
    assert kinds == [("val", 2), ("train", 5), ("val", 8)]
    assert [name for name, _, _ in run(str(tmp_path / "x"), every_vals=None)] == []


def test_what_the_user_draws_is_shown_under_its_name(tmp_path: Path) -> None:
    def draw(batch: Any, outputs: Any) -> Any:
        return {"mask": batch["image"][0, 0] > 0, "note": f"{len(outputs['preds'])} samples", "none": None}

    shown = run(str(tmp_path), every_vals=4, draw=draw, name="mine")
    assert [(name, step) for name, step, _ in shown] == [("val/mine/mask", 2), ("val/mine/note", 2)]
    assert shown[1][2] == "8 samples"
    alone = run(str(tmp_path / "x"), every_vals=4, draw=lambda batch, outputs: "a text")
    assert alone == [("val/samples", 2, "a text")]


def test_a_resumed_run_shows_what_one_that_did_not_stop_shows(tmp_path: Path) -> None:
    whole = run(str(tmp_path / "whole"), every_vals=2, every_iters=3)
    first = run(str(tmp_path / "broken"), every_vals=2, every_iters=3, stop_at=3)
    second = run(str(tmp_path / "broken"), every_vals=2, every_iters=3, resume=True)
    assert first and second
    assert first + second == whole


def test_texts_are_shown_with_what_belongs_to_them() -> None:
    batch = {
        "text": ["a", "b", "c"],
        "length": torch.tensor([1, 20000, 3]),
        "ids": torch.zeros(3, 7, dtype=int),
    }
    outputs = {
        "answer": ("x", "y", "z"),
        "score": torch.tensor([0.123456, 1.0, 2.0]),
        "loss": torch.tensor(1.0),
    }
    assert drawn(batch, outputs, 2) == {
        "text": "0: text='a', length=1, answer='x', score=0.1235\n"
        "1: text='b', length=20000, answer='y', score=1"
    }
    assert drawn((["a", "b"], torch.tensor([1, 0])), torch.eye(2), 8)["text"] == (
        "0: input='a', target=1, output=0\n1: input='b', target=0, output=1"
    )
    assert drawn(["a", "b"], None, 8) == {"text": "0: input='a'\n1: input='b'"}


def test_normalised_images_are_scaled_each_by_itself_and_others_are_not() -> None:
    images = torch.tensor([[-2.0, 2.0], [0.0, 0.5]]).reshape(2, 1, 1, 2)
    assert drawn([images], None, 8)["images"].flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    assert drawn([images[1:]], None, 8)["images"].flatten().tolist() == [0.0, 0.5]
    assert drawn([torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)], None, 8)["images"].unique().tolist() == [9]


def test_a_batch_without_images_and_texts_is_refused_and_says_what_it_has() -> None:
    with pytest.raises(
        ConfigError, match=r"input: shape \(4, 3\), target: int\); say what to show with draw="
    ):
        drawn((torch.zeros(4, 3), 5), None, 8)


def test_a_batch_with_nothing_to_show_is_refused_by_every_process(tmp_path: Path, two_ranks: Any) -> None:
    told = two_ranks(refused_on_rank, str(tmp_path))
    assert len(told) == 2 and all("finds neither images (N, C, H, W) nor texts" in one for one in told)


@pytest.mark.parametrize("options", [{"every_vals": 0}, {"every_iters": 2.0}, {"count": None}, {"count": 65}])
def test_a_wrong_number_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"SampleHook: {next(iter(options))}="):
        SampleHook(**options)
