"""The four jobs, with models of each of the four contracts, on one process and on two ranks."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from stratrun.errors import MissingArgumentError, ModelError
from tests.problems import QUIET, perceptron, points, weights
from tests.ranks import Ranks

SAMPLES, BATCH = 23, 4


def plain(batch: int) -> tuple[dict[str, Tensor], float, Tensor]:
    """Weights after two epochs, accuracy, and the predicted classes."""
    model, (inputs, targets) = perceptron(), points(SAMPLES).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(2):
        for start in range(0, SAMPLES, batch):
            part = slice(start, start + batch)
            cross_entropy(model(inputs[part]), targets[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
    best = model(inputs).argmax(1)
    return weights(model), float((best == targets).double().mean()), best


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron()


class WithSteps(Inner):
    """Contract 1. It has no test_step: val_step stands in."""

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.net(batch[0]), batch[1])}

    def val_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"preds": self.net(batch[0]), "target": batch[1]}

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.as_tensor(self.net(batch[0]))


class WithModes(Inner):
    """Contract 2, as models of MMEngine are."""

    def forward(self, inputs: Tensor, targets: Tensor | None = None, mode: str = "tensor") -> Any:
        scores = self.net(inputs)
        if mode == "loss":
            assert targets is not None
            return {"loss": cross_entropy(scores, targets)}
        assert mode == "predict"
        return scores


class WithoutLoss(Inner):
    """Contract 3."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.net(inputs))


class Output(OrderedDict[str, Tensor]):
    """Like the outputs of transformers: an ordered dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class OfKeywords(Inner):
    """Contract 4: no mode, no step, and a loss only where labels are given."""

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.net(inputs)
        found = {"logits": scores}
        return Output(found if labels is None else {"loss": cross_entropy(scores, labels), **found})


class OfKeywordsInMapping(OfKeywords):
    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return dict(super().forward(inputs, labels))


@dataclass
class Slots:
    loss: Tensor
    logits: Tensor


class OfKeywordsInObject(OfKeywords):
    """Its outputs have attributes, and are neither mapping nor sequence."""

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Slots:
        return Slots(**super().forward(inputs, labels))

    def val_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self(**batch).logits}

    predict_step = val_step


def as_mapping(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    inputs, targets = zip(*samples, strict=True)
    return {"inputs": torch.stack(inputs), "labels": torch.stack(targets)}


MAPPED = {"collate_fn": as_mapping}
CONTRACTS: dict[str, tuple[type[Inner], dict[str, Any], dict[str, Any]]] = {
    "steps": (WithSteps, {}, {}),
    "modes": (WithModes, {}, {}),
    "loss": (WithoutLoss, {"loss": "cross_entropy"}, {}),
    "output of transformers": (OfKeywords, {}, MAPPED),
    "object with loss": (OfKeywordsInObject, {}, MAPPED),
    "mapping with loss": (OfKeywordsInMapping, {}, MAPPED),
}


def all_jobs(contract: str, work_dir: str) -> dict[str, Any]:
    kind, options, loading = CONTRACTS[contract]
    model = kind()
    loader = {"dataset": points(SAMPLES), "batch_size": BATCH, "shuffle": False, **loading}
    runner = Runner(
        model,
        train_dataloader=loader,
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.3},
        val_dataloader=loader,
        val_evaluator={"type": "Accuracy"},
        test_dataloader=loader,
        test_evaluator={"type": "Accuracy"},
        predict_dataloader=loader,
        work_dir=work_dir,
        **options,
        **QUIET,
    )
    found = {"train": runner.train(), "val": runner.val(), "test": runner.test()}
    return {**found, "predict": runner.predict(), "weights": weights(model.net)}


def classes(predictions: list[Any]) -> list[int]:
    rows = [row["logits"] if isinstance(row, dict) else row for row in predictions]
    return [int(row.argmax()) for row in rows]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_contract_trains_validates_tests_and_predicts_as_a_plain_loop(
    contract: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    spread = two_ranks(all_jobs, contract, f"{tmp_path}/ranks")
    for found, batch in [(all_jobs(contract, str(tmp_path)), BATCH), *((one, BATCH * 2) for one in spread)]:
        truth, accuracy, best = plain(batch)
        torch.testing.assert_close(found["weights"], truth, rtol=1e-5, atol=1e-6)
        for job in ("train", "val", "test"):
            assert found[job] == {"accuracy": pytest.approx(accuracy, abs=1e-9)}, job
        assert classes(found["predict"]) == best.tolist()


class Silent(Inner):
    """Takes nothing."""

    def forward(self) -> None: ...


def test_a_model_that_fits_no_contract_is_told_all_four(tmp_path: Any) -> None:
    runner = Runner(
        Silent(),
        train_dataloader={"dataset": points(8), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.3},
        work_dir=str(tmp_path),
        **QUIET,
    )
    with pytest.raises(ModelError) as caught:
        runner.train()
    for word in ("train_step(batch)", "mode=", "loss=", "forward(**batch)"):
        assert word in str(caught.value)


class Lit(Inner):
    """Has a step by its name in Lightning, beside what `loss=` calls."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.net(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError


def test_a_step_of_lightning_beside_a_loss_is_left_alone_with_a_warning(tmp_path: Any) -> None:
    runner = Runner(
        Lit(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(SAMPLES), "batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.3},
        work_dir=str(tmp_path),
        **QUIET,
    )
    with pytest.warns(UserWarning, match="Lit has a method training_step, which nothing here calls: loss="):
        runner.train()
    for name, expected in plain(BATCH)[0].items():
        torch.testing.assert_close(runner.model.state_dict()[f"net.{name}"], expected)


@pytest.mark.parametrize(
    ("job", "lacking"),
    [
        ("train", "train_dataloader"),
        ("val", "val_dataloader"),
        ("test", "test_dataloader"),
        ("predict", "predict_dataloader"),
    ],
)
def test_a_job_without_its_data_names_the_argument(job: str, lacking: str) -> None:
    with pytest.raises(MissingArgumentError, match=lacking):
        getattr(Runner(perceptron()), job)()


def test_a_job_needs_nothing_but_its_own_arguments(tmp_path: Any) -> None:
    loader = {"dataset": points(8), "batch_size": 4}
    quiet: dict[str, Any] = {"loss": "cross_entropy", "work_dir": str(tmp_path), **QUIET}
    assert len(Runner(perceptron(), predict_dataloader=loader, **quiet).predict()) == 8
    tested = Runner(perceptron(), test_dataloader=loader, test_evaluator={"type": "Accuracy"}, **quiet)
    assert list(tested.test()) == ["accuracy"]
    form: dict[str, Any] = {"train_dataloader": loader, "train_cfg": {"max_epochs": 1}}
    form["test_cfg"] = {"type": "NotThere"}  # which is for another job to complain of
    trained = Runner(perceptron(), **form, optimizer={"type": "SGD", "lr": 0.1}, **quiet)
    assert trained.train() == {}


# Load weights --------------------------------------------------------------------------------------------


def test_weights_that_a_run_saved_are_those_that_another_tests(two_ranks: Ranks, tmp_path: Any) -> None:
    found = two_ranks(train_and_save, str(tmp_path / "trained"))[0]
    loader = {"dataset": points(SAMPLES), "batch_size": BATCH}
    runner = Runner(
        perceptron(seed=9),
        loss="cross_entropy",
        test_dataloader=loader,
        test_evaluator={"type": "Accuracy"},
        load_from=found["url"],
        work_dir=str(tmp_path / "tested"),
        **QUIET,
    )
    assert runner.test()["accuracy"] == pytest.approx(plain(BATCH * 2)[1])
    torch.testing.assert_close(weights(runner.model), found["weights"], rtol=0, atol=0)


def train_and_save(work_dir: str) -> dict[str, Any]:
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(SAMPLES), "batch_size": BATCH, "shuffle": False},
        train_cfg={"max_epochs": 2},
        optimizer={"type": "SGD", "lr": 0.3},
        work_dir=work_dir,
        loggers=(),
    )
    runner.train()
    return {"url": runner.last_checkpoint, "weights": weights(runner.model)}
