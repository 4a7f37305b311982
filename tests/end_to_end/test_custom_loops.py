"""Loops of the user's own, and models with running statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as judged
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stratrun import Runner
from stratrun.evaluation import BaseMetric
from stratrun.loops import EpochBasedTrainLoop
from stratrun.runner import BaseLoop
from tests.end_to_end.runs import GLOBAL_BATCH, SAMPLES, run
from tests.problems import CLASSES, FEATURES, QUIET, perceptron, points, weights
from tests.ranks import Ranks

# A training loop from scratch ----------------------------------------------------------------------------


class TwiceEach(BaseLoop):
    """Learns each batch twice, and validates at the end."""

    def __init__(self, runner: Any, dataloader: Any, passes: int) -> None:
        super().__init__(runner, dataloader)
        self.passes = passes

    def run(self) -> None:
        runner = self.runner
        runner.call_hooks("before_train")
        for _ in range(self.passes):
            for idx, batch in enumerate(self.dataloader):
                self.run_iter(idx, batch)
                outputs = self.run_iter(idx, batch)
                runner.engine.finish_iter()
                runner.call_hooks("after_train_iter", batch_idx=idx, data_batch=batch, outputs=outputs)
            runner.state.epoch += 1
        runner.validate()
        runner.call_hooks("after_train")


def plain_twice() -> dict[str, Tensor]:
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(2):
        for start in range(0, SAMPLES, GLOBAL_BATCH):
            for _ in range(2):
                part = slice(start, start + GLOBAL_BATCH)
                cross_entropy(model(inputs[part]), targets[part]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


class Numbers(BaseMetric):
    """How many samples were counted."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += data_batch[1].tolist()

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return {"counted": len(results)}


def twice(work_dir: str) -> tuple[dict[str, Tensor], tuple[int, ...], dict[str, float]]:
    runner = run(
        perceptron(),
        work_dir,
        loss="cross_entropy",
        train_cfg={"type": TwiceEach, "passes": 2},
        val_dataloader={"dataset": points(13), "batch_size": 2},
        val_evaluator=Numbers(),
    )
    state = runner.state
    return weights(runner.model), (state.epoch, state.iter, state.step, state.samples), runner.metrics


def test_a_train_loop_from_scratch_reaches_the_weights_of_a_plain_loop(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    for found, counts, metrics in [twice(str(tmp_path)), *two_ranks(twice, str(tmp_path))]:
        torch.testing.assert_close(found, plain_twice(), rtol=1e-5, atol=1e-6)
        assert counts[:2] == (2, 12)
        assert counts[3] == 2 * SAMPLES
        assert metrics == {"counted": 13}


# A recipe with two losses and two optimizers -------------------------------------------------------------


class Gan(nn.Module):
    """A generator of points, and a judge of them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = perceptron(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.judge = nn.Sequential(nn.Linear(CLASSES, 4), nn.Tanh(), nn.Linear(4, 1))

    def judge_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        noise, real = batch
        right, wrong = self.judge(real), self.judge(self.generator(noise).detach())
        return judged(right, torch.ones_like(right)) + judged(wrong, torch.zeros_like(wrong))

    def generate_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        fooled = self.judge(self.generator(batch[0]))
        return judged(fooled, torch.ones_like(fooled))


def pairs() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(SAMPLES, FEATURES, generator=generator)
    return TensorDataset(noise, torch.randn(SAMPLES, CLASSES, generator=generator) + 2)


def plain_gan() -> dict[str, Tensor]:
    model, columns = Gan(), pairs().tensors
    judge = torch.optim.SGD(model.judge.parameters(), lr=0.2)
    generator = torch.optim.Adam(model.generator.parameters(), lr=0.01)
    for _ in range(2):
        for start in range(0, SAMPLES, GLOBAL_BATCH):
            noise, real = (column[start : start + GLOBAL_BATCH] for column in columns)
            model.zero_grad()
            model.judge_step((noise, real)).backward()
            judge.step()
            model.zero_grad()
            model.generate_step((noise, real)).backward()
            generator.step()
    return weights(model)


class GanLoop(EpochBasedTrainLoop):
    def run_iter(self, idx: int, data_batch: Any) -> dict[str, Tensor]:
        engine = self.runner.engine
        losses = {}
        for name, mode in (("judge", "judge"), ("generator", "generate")):
            losses[name] = engine.forward(data_batch, mode)
            engine.update(losses[name], optimizer=name)
        return losses


def gan(work_dir: str) -> tuple[dict[str, Tensor], tuple[int, int]]:
    runner = run(
        Gan(),
        work_dir,
        train_cfg={"type": GanLoop, "max_epochs": 2},
        train_dataloader={"dataset": pairs(), "global_batch_size": GLOBAL_BATCH, "shuffle": False},
        optimizer={
            "judge": {"type": "SGD", "lr": 0.2, "params": "judge"},
            "generator": {"type": "Adam", "lr": 0.01, "params": "generator"},
        },
    )
    return weights(runner.model), (runner.iter, runner.step)


def test_a_recipe_with_two_optimizers_reaches_the_weights_of_a_plain_loop(
    two_ranks: Ranks, tmp_path: Any
) -> None:
    for found, counts in [gan(str(tmp_path)), *two_ranks(gan, str(tmp_path))]:
        torch.testing.assert_close(found, plain_gan(), rtol=1e-4, atol=1e-5)
        assert counts == (12, 12)


# Several validation sets ---------------------------------------------------------------------------------


def several(work_dir: str, evaluator: Any = None) -> dict[str, float]:
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        val_dataloader={
            "easy": {"dataset": points(13), "batch_size": 3},
            "hard": {"dataset": points(7, seed=5), "batch_size": 2},
        },
        val_evaluator=evaluator or [{"type": "Accuracy"}, Numbers()],
        work_dir=work_dir,
        **QUIET,
    )
    return runner.val()


def accuracy(samples: int, seed: int) -> float:
    inputs, targets = points(samples, seed).tensors
    return float((perceptron()(inputs).argmax(1) == targets).double().mean())


def test_metrics_of_several_validation_sets_carry_their_names(two_ranks: Ranks, tmp_path: Any) -> None:
    truth = {"easy/accuracy": accuracy(13, 0), "easy/counted": 13}
    truth |= {"hard/accuracy": accuracy(7, 5), "hard/counted": 7}
    assert truth["easy/accuracy"] != truth["hard/accuracy"]
    for found in [several(str(tmp_path)), *two_ranks(several, str(tmp_path))]:
        assert found == pytest.approx(truth)


def test_each_validation_set_may_have_metrics_of_its_own(tmp_path: Any) -> None:
    found = several(str(tmp_path), {"easy": {"type": "Accuracy"}, "hard": Numbers()})
    assert found == {"easy/accuracy": pytest.approx(accuracy(13, 0)), "hard/counted": 7}


# Running statistics --------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
        self.evaluated_with: list[Tensor] = []

    def train_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def val_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        assert not self.net.training
        norm = self.net[1]
        assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
        self.evaluated_with.append(norm.running_mean.clone())
        scores = self.net(batch[0])
        return {"preds": scores, "target": batch[1], "loss": cross_entropy(scores, batch[1])}


def normed(work_dir: str) -> dict[str, Any]:
    """Three validations while training, and one more; an odd number of samples for two ranks."""
    runner = run(
        Normed(),
        work_dir,
        # No batch of a single sample on any rank: there is no variance of it.
        train_dataloader={"dataset": points(24), "global_batch_size": GLOBAL_BATCH},
        train_cfg={"max_epochs": 3},
        val_dataloader={"dataset": points(13, seed=5), "batch_size": 7},
        val_evaluator=[{"type": "MeanMetric"}, {"type": "Accuracy"}],
    )
    metrics = dict(runner.metrics)
    again = runner.val()
    model = runner.model
    assert isinstance(model, Normed)
    assert model.net.training is False
    return {"metrics": metrics, "again": again, "means": model.evaluated_with, "weights": weights(model)}


def test_every_rank_evaluates_with_the_same_running_statistics(two_ranks: Ranks, tmp_path: Any) -> None:
    first, second = two_ranks(normed, str(tmp_path))
    assert len(first["means"]) == len(second["means"]) == 4
    torch.testing.assert_close(first["means"], second["means"], rtol=0, atol=0)
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert first["metrics"] == second["metrics"] == first["again"]
    # The value is the one that the model of one process with these statistics gives.
    model = Normed()
    model.load_state_dict(first["weights"])
    inputs, targets = points(13, seed=5).tensors
    with torch.no_grad():
        scores = model.eval().net(inputs)
    assert first["metrics"]["loss"] == pytest.approx(float(cross_entropy(scores, targets)), rel=1e-6)
    assert first["metrics"]["accuracy"] == pytest.approx(float((scores.argmax(1) == targets).float().mean()))


def test_a_model_trains_on_after_it_was_evaluated(tmp_path: Any) -> None:
    found = normed(str(tmp_path))
    assert not torch.equal(found["means"][0], found["means"][2])
