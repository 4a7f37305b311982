"""Test-time augmentation: the merged views are those of a loop written out, and each sample counts once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from stratrun import TRANSFORMS, Runner
from stratrun.errors import ConfigError, ModelError
from stratrun.evaluation import BaseMetric
from stratrun.hooks import Hook
from stratrun.loops.merging import largest, mean
from tests.ranks import Ranks

SAMPLES, SIZE = 11, 6


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(SAMPLES, SIZE, generator=generator)
    return TensorDataset(inputs, torch.randint(SIZE, (SAMPLES,), generator=generator), torch.arange(SAMPLES))


class Net(nn.Module):
    """Scores for each place of its input, in their order: what a view turns is to be turned back."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(SIZE, 8), nn.Tanh(), nn.Linear(8, SIZE))
        self.calls = 0

    def val_step(self, batch: Any) -> dict[str, Any]:
        inputs, target, number = batch
        self.calls += 1
        scores = self.layers(inputs)
        return {
            "preds": scores,
            "target": target,
            "number": number,
            "loss": functional.cross_entropy(scores, target),
        }

    def predict_step(self, batch: Any) -> Tensor:
        return self.layers(batch[0])


def flip(batch: Any) -> Any:
    return [batch[0].flip(1), *batch[1:]]


def flip_back(outputs: Any) -> Any:
    return outputs.flip(1) if isinstance(outputs, Tensor) else {**outputs, "preds": outputs["preds"].flip(1)}


class Scaled:
    """A view with settings, and an inverse of its own."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, batch: Any) -> Any:
        return [batch[0] * self.by, *batch[1:]]

    def inverse(self, outputs: Any) -> Any:
        return outputs + 1 if isinstance(outputs, Tensor) else {**outputs, "preds": outputs["preds"] + 1}


VIEWS: list[Any] = [{"transform": flip, "inverse": flip_back}, {"type": Scaled, "by": 0.5}]


def truth(merge: str, original: bool = True) -> Tensor:
    """The merged scores, by a loop without anything of ours."""
    layers, inputs = Net().layers, data().tensors[0]
    with torch.no_grad():
        views = [layers(inputs)] if original else []
        views += [layers(inputs.flip(1)).flip(1), layers(inputs * 0.5) + 1]
    return torch.stack(views).mean(0) if merge == "mean" else torch.stack(views).max(0).values


class Scores(BaseMetric):
    """The scores that metrics get, by sample."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += zip(data_samples["number"].tolist(), data_samples["preds"].tolist(), strict=True)

    def compute_metrics(self, results: list[tuple[int, list[float]]]) -> dict[str, Any]:
        gap = (torch.tensor([scores for _, scores in results]) - truth("mean")).abs().max()
        numbers = [number for number, _ in results]
        return {"gap": float(gap), "counted": len(numbers), "different": len(set(numbers))}


def evaluated(strategy: str, work_dir: str) -> dict[str, Any]:
    loader = {"dataset": data(), "batch_size": 2}
    options = {"transforms": VIEWS}
    runner = Runner(
        Net(),
        val_dataloader=loader,
        val_cfg={"type": "TTAValLoop", **options},
        val_evaluator=[{"type": "Accuracy"}, Scores()],
        test_dataloader=loader,
        test_cfg={"type": "TTATestLoop", **options},
        test_evaluator={"type": "Accuracy"},
        predict_dataloader=loader,
        predict_cfg={"type": "TTAPredictLoop", "merge": "max", **options},
        strategy=strategy,
        loggers=(),
        work_dir=work_dir,
    )
    found = {"val": runner.val(), "test": runner.test(), "predict": torch.stack(runner.predict())}
    runner.close()
    return found


def check(found: dict[str, Any]) -> None:
    targets = data().tensors[1]
    right = float((truth("mean").argmax(1) == targets).double().mean())
    assert found["val"]["counted"] == found["val"]["different"] == SAMPLES
    assert found["val"]["gap"] < 1e-6
    assert found["val"]["accuracy"] == found["test"]["accuracy"] == pytest.approx(right, rel=1e-12)
    torch.testing.assert_close(found["predict"], truth("max"), rtol=1e-6, atol=1e-6)


def test_one_process_merges_as_a_loop_written_out_does(tmp_path: Path) -> None:
    check(evaluated("single", str(tmp_path)))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_merge_as_one_process_does(strategy: str, two_ranks: Ranks, tmp_path: Path) -> None:
    for found in two_ranks(evaluated, strategy, str(tmp_path)):
        check(found)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_fewer_batches_or_none_take_part(strategy: str, four_ranks: Ranks, tmp_path: Path) -> None:
    for found in four_ranks(evaluated, strategy, str(tmp_path)):
        check(found)


class Seen(Hook):
    """Sizes of the batches and of the outputs that hooks get."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def after_test_iter(self, data_batch: Any, outputs: Any) -> None:
        self.pairs.append((len(data_batch[0]), len(outputs["preds"])))


def test_a_hook_sees_each_batch_once_and_the_model_one_for_each_view(tmp_path: Path) -> None:
    model, seen = Net(), Seen()
    runner = Runner(
        model,
        test_dataloader={"dataset": data(), "batch_size": 4},
        test_cfg={"type": "TTATestLoop", "transforms": VIEWS, "original": False},
        test_evaluator={"type": "Accuracy"},
        custom_hooks=[seen],
        loggers=(),
        work_dir=str(tmp_path),
    )
    runner.test()
    assert seen.pairs == [(4, 4), (4, 4), (3, 3)]
    assert model.calls == 3 * 2


def test_a_transform_and_a_merge_may_be_registered_functions(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(TRANSFORMS, "_entries", dict(TRANSFORMS._entries))

    @TRANSFORMS.register_module()
    def times(batch: Any, by: float) -> Any:
        return [batch[0] * by, *batch[1:]]

    @TRANSFORMS.register_module()
    def first(views: list[Any]) -> Any:
        return views[0]

    runner = Runner(
        Net(),
        predict_dataloader={"dataset": data(), "batch_size": 4},
        predict_cfg={
            "type": "TTAPredictLoop",
            "transforms": [{"type": "times", "by": 3}],
            "merge": "first",
            "original": False,
        },
        loggers=(),
    )
    with torch.no_grad():
        expected = Net().layers(data().tensors[0] * 3)
    torch.testing.assert_close(torch.stack(runner.predict()), expected)


def test_a_validation_within_training_sees_the_views(tmp_path: Path) -> None:
    runner = Runner(
        Net().layers,
        loss="cross_entropy",
        train_dataloader={"dataset": TensorDataset(*data().tensors[:2]), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.0},
        val_dataloader={"dataset": TensorDataset(*data().tensors[:2]), "batch_size": 4},
        val_cfg={"type": "TTAValLoop", "transforms": VIEWS},
        val_evaluator={"type": "Accuracy"},
        default_hooks={"checkpoint": None},
        loggers=(),
        work_dir=str(tmp_path),
    )
    right = float((truth("mean").argmax(1) == data().tensors[1]).double().mean())
    assert runner.train()["accuracy"] == pytest.approx(right, rel=1e-12)


@dataclass
class Boxes:
    """Outputs of a user's own class."""

    scores: Tensor
    names: tuple[str, ...]


def test_merging_keeps_what_outputs_are_made_of() -> None:
    target = torch.tensor([1, 2])
    views = [
        {"a": (torch.tensor([float(n)]), 2.0 * n), "b": [Boxes(torch.tensor(n / 2), ("x",))], "t": target}
        for n in range(3)
    ]
    merged = mean(views)
    assert merged["t"] is target
    assert merged["a"][0].item() == 1 and merged["a"][1] == 2.0 and isinstance(merged["a"], tuple)
    assert merged["b"] == [Boxes(torch.tensor(0.5), ("x",))]
    assert largest(views)["a"][0].item() == 2


def test_half_precision_is_summed_in_single() -> None:
    views = [torch.full((1,), 60000.0, dtype=torch.float16)] * 2 + [
        torch.full((1,), 6.0, dtype=torch.float16)
    ]
    assert torch.isfinite(mean(views)).all()


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ([torch.tensor([1]), torch.tensor([2])], "outputs hold a tensor of int64, which has no mean"),
        ([{"p": "a"}, {"p": "b"}], r"outputs\['p'\] hold str that differ"),
        ([torch.zeros(2), torch.zeros(3)], r"shapes \(2,\), \(3,\) in the views"),
        ([{"p": 1.0}, {"q": 1.0}], "other keys in other views"),
        ([[1.0], [1.0, 2.0]], "other lengths in other views"),
        ([1.0, torch.zeros(())], "of another type"),
    ],
)
def test_what_has_no_mean_is_refused(views: list[Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        mean(views)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, ConfigError, "transforms"),
        ({"transforms": []}, ConfigError, r"transforms=\[\] must be a list"),
        ({"transforms": flip}, ConfigError, "must be a list"),
        ({"transforms": [3]}, ConfigError, "transforms.0=3 cannot be called"),
        ({"transforms": ["flop"]}, ConfigError, "transforms.0='flop'"),
        ({"transforms": [{"transform": flip, "invers": flip}]}, ConfigError, "did you mean 'inverse'"),
        ({"transforms": [{"type": Scaled, "bye": 2}]}, ConfigError, "did you mean 'by'"),
        ({"transforms": [flip], "merge": "meen"}, ConfigError, "did you mean 'mean'"),
        ({"transforms": [flip], "merge": 2}, ConfigError, "merge=2 cannot be called"),
        ({"transforms": [flip], "original": 1}, ConfigError, "original=1 must be True or False"),
    ],
)
def test_wrong_views_are_refused_before_anything_is_built(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    def never() -> nn.Module:
        raise AssertionError("the model was built")

    runner = Runner(
        never, predict_dataloader=data(), predict_cfg={"type": "TTAPredictLoop", **options}, loggers=()
    )
    with pytest.raises(error, match=told):
        runner.predict()


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_model_that_writes_over_its_last_outputs_is_merged_as_any_other(kind: str) -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("out", torch.zeros(4, SIZE), persistent=False)

        def predict_step(self, batch: Any) -> Any:
            out = self.out[: len(batch[0])].copy_(batch[0])
            return out.numpy() if kind == "array" else {"scores": out}

    runner = Runner(
        Reusing(),
        predict_dataloader={"dataset": data(), "batch_size": 4},
        predict_cfg={"type": "TTAPredictLoop", "transforms": [flip]},
        loggers=(),
    )
    found = [torch.as_tensor(one if kind == "array" else one["scores"]) for one in runner.predict()]
    inputs = data().tensors[0]
    torch.testing.assert_close(torch.stack(found), (inputs + inputs.flip(1)) / 2)
