"""Classes in MMEngine's form, against plain loops that do what MMEngine's train_step does, in its order."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from stratrun import Runner
from stratrun.errors import ConfigError, ModelError
from stratrun_ext.migrate.mmengine import BaseMetric, BaseModel, Hook, ImgDataPreprocessor, pseudo_collate
from tests.ranks import Ranks

LR, EPOCHS, BATCH = 0.05, 3, 8


class Classifier(BaseModel):
    """The README's model, with a small network in the place of its ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))

    def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
        x = self.net(imgs)
        if mode == "loss":
            return {"loss": F.cross_entropy(x, labels)}
        if mode == "predict":
            return x, labels
        return x


class SeveralLosses(Classifier):
    """Losses as detectors give them: lists, tensors with dimensions, and values that are no loss."""

    def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
        x = self.net(imgs)
        if mode != "loss":
            return x, labels
        each = F.cross_entropy(x, labels, reduction="none")
        return OrderedDict(
            loss_cls=each, loss_levels=[x.square(), 0.5 * x.abs()], acc=(x.argmax(1) == labels).float()
        )


class Accuracy(BaseMetric):
    """The README's metric, as it stands."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        score, gt = data_samples
        self.results.append({"batch_size": len(gt), "correct": (score.argmax(dim=1) == gt).sum().cpu()})

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        total_correct = sum(item["correct"] for item in results)
        total_size = sum(item["batch_size"] for item in results)
        return dict(accuracy=100 * total_correct / total_size)


def images(count: int = 44) -> TensorDataset:
    drawn = torch.Generator().manual_seed(3)
    return TensorDataset(
        torch.randn(count, 3, 8, 8, generator=drawn), torch.randint(5, (count,), generator=drawn)
    )


def made(kind: type[BaseModel]) -> BaseModel:
    torch.manual_seed(0)
    return kind()


def train(kind: type[BaseModel], folder: Path, **changes: Any) -> tuple[Runner, dict[str, float]]:
    given: dict[str, Any] = dict(
        model=made(kind),
        work_dir=folder / "work",
        train_dataloader=DataLoader(batch_size=BATCH, shuffle=False, dataset=images()),
        optimizer=dict(type=SGD, lr=LR, momentum=0.9),
        train_cfg=dict(by_epoch=True, max_epochs=EPOCHS, val_interval=1),
        val_dataloader=DataLoader(batch_size=10, shuffle=False, dataset=images()),
        val_cfg={},
        val_evaluator=dict(type=Accuracy),
        accelerator="cpu",
        loggers=[],
    )
    runner = Runner(**{**given, **changes})
    return runner, runner.train()


def plain(kind: type[BaseModel]) -> tuple[list[float], BaseModel]:
    """What MMEngine does with a batch: losses, their means, the sum of those called loss, a step."""
    model = made(kind)
    optimizer = SGD(model.parameters(), lr=LR, momentum=0.9)
    curve = []
    for _ in range(EPOCHS):
        model.train()
        for imgs, labels in DataLoader(images(), batch_size=BATCH):
            losses = model(imgs, labels, mode="loss")
            means = {
                key: value.mean() if isinstance(value, Tensor) else sum(one.mean() for one in value)
                for key, value in losses.items()
            }
            loss = sum(value for key, value in means.items() if "loss" in key)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
    return curve, model


class Curve(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("kind", [Classifier, SeveralLosses])
def test_a_model_of_mmengine_is_trained_as_a_plain_loop_trains_it(
    kind: type[BaseModel], tmp_path: Path
) -> None:
    curve, (expected, model) = Curve(), plain(kind)
    runner, metrics = train(kind, tmp_path, custom_hooks=[curve])
    torch.testing.assert_close(curve.losses, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(runner.model.state_dict(), model.state_dict(), rtol=0, atol=1e-6)
    imgs, labels = images().tensors
    right = model(imgs, labels, mode="predict")[0].argmax(1).eq(labels).sum()
    assert metrics == {"accuracy": pytest.approx(100 * float(right) / 44)}


def on_ranks(folder: str) -> dict[str, float]:
    return train(Classifier, Path(folder), strategy="ddp")[1]


def test_a_metric_counts_each_sample_once_on_two_ranks(two_ranks: Ranks, tmp_path: Path) -> None:
    one, *others = two_ranks(on_ranks, str(tmp_path))
    assert others == [one]
    # Of 44 samples; a sampler that pads would count 50 with batches of 10 on two ranks.
    assert abs(one["accuracy"] * 44 / 100 - round(one["accuracy"] * 44 / 100)) < 1e-4


def test_what_is_no_loss_is_logged_and_not_trained_on() -> None:
    model = made(SeveralLosses)
    imgs, labels = images().tensors
    outputs = model.train_step((imgs, labels))
    assert list(outputs) == ["loss_cls", "loss_levels", "acc", "loss"]
    assert torch.equal(outputs["loss"], outputs["loss_cls"] + outputs["loss_levels"])


def test_a_loss_among_losses_is_logged_as_what_is_trained_on() -> None:
    loss, values = made(Classifier).parse_losses({"loss": torch.tensor(1.0), "loss_aux": torch.tensor(2.0)})
    assert loss == values["loss"] == 3


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"cls": torch.ones(1)}, "no name contains 'loss'"),
        ({"loss": 1.0}, "float as 'loss'"),
        (torch.ones(1), "must return a dict of losses"),
        ({"loss": []}, "list as 'loss'"),
    ],
)
def test_losses_that_cannot_be_summed_are_refused(losses: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        made(Classifier).parse_losses(losses)


def test_a_batch_becomes_keywords_or_first_arguments() -> None:
    model, (imgs, labels) = made(Classifier), images().tensors
    by_name = model.val_step({"labels": labels, "imgs": imgs})[0]
    assert torch.equal(by_name, model.val_step([imgs, labels])[0])
    with pytest.raises(ModelError, match="batch that is a Tensor"):
        model.val_step(imgs)


def test_a_step_that_makes_its_own_update_is_refused_where_it_is_written() -> None:
    with pytest.raises(ModelError, match=r"Gan.train_step.*write a loop"):

        class Gan(Classifier):
            def train_step(self, data, optim_wrapper):  # type: ignore[no-untyped-def]
                """As MMEngine has it for several optimizers."""


def test_other_weights_to_begin_with_are_not_passed_over() -> None:
    class Pretrained(Classifier):
        def __init__(self) -> None:
            BaseModel.__init__(self, init_cfg=dict(type="Pretrained", checkpoint="x.pth"))

    with pytest.raises(ConfigError, match="load_from="):
        Pretrained()


def test_images_of_several_sizes_are_normalised_turned_and_padded() -> None:
    prepare = ImgDataPreprocessor([1.0, 2, 3], [2.0, 4, 8], pad_size_divisor=4, pad_value=7, bgr_to_rgb=True)
    tall, wide = torch.arange(3 * 5 * 2).view(3, 5, 2), torch.arange(3 * 2 * 6).view(3, 2, 6)
    found = prepare({"inputs": [tall, wide], "data_samples": "kept"})
    expected = torch.full((2, 3, 8, 8), 7.0)
    for image, place in ((tall, expected[0, :, :5, :2]), (wide, expected[1, :, :2, :6])):
        for channel, (mean, std) in enumerate(((1, 2), (2, 4), (3, 8))):
            place[channel] = (image[2 - channel].float() - mean) / std
    assert torch.equal(found["inputs"], expected)
    assert found["data_samples"] == "kept"


def test_pseudo_collate_stacks_nothing() -> None:
    image = torch.ones(2)
    batch = pseudo_collate(
        [{"inputs": image, "data_samples": (1, "a")}, {"inputs": image, "data_samples": (2, "b")}]
    )
    assert batch["inputs"][0] is image and len(batch["inputs"]) == 2
    assert batch["data_samples"] == [[1, 2], ["a", "b"]]


class Asking(Hook):
    """Notes the answers to MMEngine's questions at each point, under MMEngine's methods for all jobs."""

    priority = "LOW"  # type: ignore[assignment]

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):  # type: ignore[no-untyped-def]
        self.told.append(
            ("before", batch_idx, self.every_n_train_iters(runner, 3), self.is_last_train_iter(runner))
        )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
        self.told.append(
            ("after", batch_idx, self.every_n_train_iters(runner, 3), self.is_last_train_iter(runner))
        )

    def _before_epoch(self, runner, mode="train"):  # type: ignore[no-untyped-def]
        self.told.append((f"before {mode}", self.every_n_epochs(runner, 2), self.is_last_train_epoch(runner)))

    def after_train_epoch(self, runner):  # type: ignore[no-untyped-def]
        self.told.append(("after train", self.every_n_epochs(runner, 2), self.is_last_train_epoch(runner)))


def asked_of_mmengine() -> list[tuple[Any, ...]]:
    """A loop in MMEngine's order: counters move behind their `after_` point, and all answers are of + 1."""
    told: list[tuple[Any, ...]] = []
    iteration = 0
    for epoch in range(2):
        told.append(("before train", (epoch + 1) % 2 == 0, epoch + 1 == 2))
        for batch in range(2):
            told += [(at, batch, (iteration + 1) % 3 == 0, iteration + 1 == 4) for at in ("before", "after")]
            iteration += 1
        told.append(("after train", (epoch + 1) % 2 == 0, epoch + 1 == 2))
        epoch += 1
        told.append(("before val", (epoch + 1) % 2 == 0, epoch + 1 == 2))
    return told


def test_a_hook_of_mmengine_gets_its_answers_at_each_point(tmp_path: Path) -> None:
    hook = Asking()
    loader = DataLoader(images(), batch_size=22)
    train(Classifier, tmp_path, train_dataloader=loader, train_cfg=dict(max_epochs=2), custom_hooks=[hook])
    assert hook.told == asked_of_mmengine()


class Everywhere(Hook):
    """Has methods for all jobs, and one of its own for one of them."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):  # type: ignore[no-untyped-def]
        self.told.append(f"{mode} {batch_idx}")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # type: ignore[no-untyped-def]
        self.told.append(f"own {batch_idx}")


def test_methods_for_all_jobs_are_called_where_there_is_none_for_one(tmp_path: Path) -> None:
    hook = Everywhere()
    loader = DataLoader(images(), batch_size=22)
    changes = dict(train_dataloader=loader, val_dataloader=loader, train_cfg=dict(max_epochs=1))
    train(Classifier, tmp_path, custom_hooks=[hook], **changes)
    assert hook.told == ["train 0", "train 1", "own 0", "own 1"]


def test_a_metric_evaluated_by_hand_leaves_out_padding_and_has_its_prefix() -> None:
    class Count(BaseMetric):
        default_prefix = "n"

        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results.extend(data_samples)

        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            return {"sum": sum(results)}

    metric = Count(collect_device="gpu")
    metric.process(None, [1, 2, 3, 1])
    assert metric.evaluate(3) == {"n/sum": 6}
    assert metric.results == []
