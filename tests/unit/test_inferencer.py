"""A trained model on raw inputs: what it says is what the bare model says, and nothing else is built."""

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stratrun import MODELS, TRANSFORMS, Inferencer, Runner
from stratrun.checkpoint import StoredCheckpoint
from stratrun.storage import Folder
from tests.problems import CLASSES, perceptron, points
from tests.ranks import Ranks
from tests.stores import Store

INPUTS = points(11).tensors[0]


class Classifier(nn.Module):
    """A perceptron with a step of its own for predictions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = perceptron(seed)
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)

    def predict_step(self, batch: Tensor) -> dict[str, Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        self.sizes.append(len(batch))
        return {"scores": self.layers(batch), "mean": batch.mean()}


def parse(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split()])


TEXTS = [" ".join(map(str, row.tolist())) for row in INPUTS]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, entry in ((MODELS, Classifier), (TRANSFORMS, parse)):
        monkeypatch.setattr(registry, "_entries", {**registry._entries, entry.__name__: entry})


def config(**more: Any) -> dict[str, Any]:
    return {
        "model": {"type": "Classifier", "seed": 3},
        "loss": "cross_entropy",
        "inference_cfg": {"preprocess": "parse", "batch_size": 4},
        **more,
    }


def train(work_dir: str, **options: Any) -> Runner:
    """Two epochs with averages of the weights; the first is the best."""
    form = {
        "train_dataloader": {"dataset": points(12), "batch_size": 4},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "SGD", "lr": 0.5},
        "custom_hooks": [{"type": "EMAHook", "decay": 0.5}],
        "loggers": (),
        "work_dir": work_dir,
        **options,
    }
    runner = Runner.from_cfg(config(**form))
    runner.train()
    runner.close()
    return runner


@pytest.fixture
def work_dir(tmp_path: Path) -> str:
    train(str(tmp_path / "run"))
    return str(tmp_path / "run")


def bare(weights: dict[str, Tensor]) -> Tensor:
    """What a bare model says with these weights."""
    model = Classifier()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.layers(INPUTS)


def scores(results: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([result["scores"] for result in results])


def stored(work_dir: str, step: int) -> dict[str, Any]:
    return StoredCheckpoint(Folder(work_dir).child(f"checkpoints/step-{step:08d}")).read().shared


@pytest.mark.parametrize(("name", "step"), [("last", 6), ("step-00000003", 3)])
def test_a_run_says_what_its_weights_say_of_raw_inputs(name: str, step: int, work_dir: str) -> None:
    inferencer = Inferencer.from_run(work_dir, checkpoint=name)
    torch.testing.assert_close(scores(inferencer(TEXTS)), bare(stored(work_dir, step)["model"]))
    assert inferencer.model.sizes == [4, 4, 3]
    assert all(result.keys() == {"scores"} for result in inferencer(TEXTS))


def test_averages_are_taken_on_request(work_dir: str) -> None:
    shared = stored(work_dir, 6)
    state = {**shared["model"], **shared["hooks"]["EMAHook"]["averages"]}
    found = scores(Inferencer.from_run(work_dir, weights="ema")(TEXTS))
    torch.testing.assert_close(found, bare(state))
    assert not torch.allclose(found, bare(shared["model"]))


def test_files_of_weights_and_configs_serve_too(work_dir: str, tmp_path: Path) -> None:
    weights = stored(work_dir, 6)["model"]
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    (tmp_path / "c.yaml").write_text("model: {type: Classifier}\ninference_cfg: {preprocess: parse}\n")
    found = [
        Inferencer(Classifier(), str(tmp_path / "w.pt"), preprocess=parse),
        Inferencer({"type": "Classifier"}, tmp_path / "w.safetensors", preprocess="parse"),
        Inferencer(config=tmp_path / "c.yaml", weights=f"{work_dir}/last", precision="32-true"),
        Inferencer(config=config(load_from=f"{work_dir}/last", optimizer={"type": "Nothing"})),
    ]
    for inferencer in found:
        torch.testing.assert_close(scores(inferencer(TEXTS)), bare(weights))


def test_a_checkpoint_elsewhere_serves_as_well(s3: Store) -> None:
    where = f"{s3.url}/run"
    train(where, checkpoint_cfg={"storage_options": s3.options})
    inferencer = Inferencer.from_run(where, storage_options=s3.options)
    weights = StoredCheckpoint(Folder(f"{where}/checkpoints/step-00000006", **s3.options)).read().shared
    torch.testing.assert_close(scores(inferencer(TEXTS)), bare(weights["model"]))


def sharded(work_dir: str) -> None:
    train(work_dir, strategy="fsdp", loss={"type": Weighted}, custom_hooks=[])


class Weighted(nn.Module):
    """A loss with a state of its own, beside which the model's names lie one level lower."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, weight=self.weight.detach())


def test_what_two_ranks_of_fsdp_have_saved_is_read_in_one_process(two_ranks: Ranks, tmp_path: Path) -> None:
    two_ranks(in_rank, str(tmp_path))
    weights = stored(str(tmp_path), 4)["model"]
    model = {name.removeprefix("model."): one for name, one in weights.items() if name.startswith("model.")}
    found = Inferencer.from_run(tmp_path, allow=["tests"])(TEXTS)
    torch.testing.assert_close(scores(found), bare(model))


def in_rank(work_dir: str) -> None:
    MODELS.register_module(force=True)(Classifier)
    TRANSFORMS.register_module(force=True)(parse)
    sharded(work_dir)


def test_a_single_input_gives_its_result_and_an_iterator_a_generator() -> None:
    inferencer = Inferencer(
        Classifier(), preprocess=parse, batch_size=2, postprocess=lambda one: int(one["scores"].argmax())
    )
    expected = bare(Classifier().state_dict()).argmax(1).tolist()
    assert inferencer(TEXTS[4]) == expected[4]
    assert inferencer([]) == [] and inferencer(TEXTS[:1]) == expected[:1]
    taken = []

    def source() -> Iterator[str]:
        for text in TEXTS:
            taken.append(text)
            yield text

    results = inferencer(source())
    assert isinstance(results, Iterator) and taken == []
    assert next(results) == expected[0] and len(taken) == 2
    assert [next(results), next(results)] == expected[1:3] and len(taken) == 4
    assert list(results) == expected[3:]
    assert list(inferencer.stream(tuple(TEXTS))) == expected


def test_it_predicts_as_the_runner_does_for_any_way_in_which_a_model_is_called() -> None:
    class ByMode(Classifier):
        predict_step = None  # type: ignore[assignment]

        def forward(self, inputs: Tensor, mode: str = "tensor") -> Any:
            assert mode == "predict"
            return self.layers(inputs)

    for model, options in ((ByMode(), {}), (perceptron(), {}), (perceptron(), {"loss": "cross_entropy"})):
        data = {"dataset": list(INPUTS), "batch_size": 4}
        predicted = Runner(model, predict_dataloader=data, loggers=(), **options).predict()
        found = Inferencer(model, batch_size=4, **options)(list(INPUTS))
        assert all(torch.equal(one, other) for one, other in zip(found, predicted, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_texts_are_one_argument_however_many_there_are(batch_size: int) -> None:
    class Lengths(nn.Module):
        def forward(self, texts: list[str], scale: float = 1.0) -> Tensor:
            return torch.tensor([len(text) * scale for text in texts])

    texts = ["a", "bb", "ccc", "dddd"]
    assert [float(one) for one in Inferencer(Lengths(), batch_size=batch_size)(texts)] == [1, 2, 3, 4]
    data = {"dataset": texts, "batch_size": batch_size}
    assert [float(one) for one in Runner(Lengths(), predict_dataloader=data, loggers=()).predict()] == [
        1,
        2,
        3,
        4,
    ]


def test_nothing_is_written_and_nothing_is_drawn(work_dir: str, tmp_path: Path, monkeypatch: Any) -> None:
    before = sorted(Path(work_dir).rglob("*"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    torch.manual_seed(5)
    random.seed(5)
    with Inferencer.from_run(work_dir) as inferencer:
        inferencer(TEXTS)
    drawn = torch.rand(2), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(drawn[0], torch.rand(2)) and drawn[1] == random.random()
    assert sorted(Path(work_dir).rglob("*")) == before and not list(Path().iterdir())


def test_precision_is_that_of_the_run_unless_another_is_given(tmp_path: Path) -> None:
    half = Inferencer(
        config=config(precision="bf16-true"), model=Classifier(), weights=None, collate=torch.stack
    )
    assert half(TEXTS[0])["scores"].dtype is torch.bfloat16
    full = Inferencer(config=config(precision="bf16-true"), model=Classifier(), precision="32-true")
    assert full(TEXTS[0])["scores"].dtype is torch.float32


class Terminal(io.StringIO):
    """A stream that someone watches."""

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_request_and_where_it_is_watched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inferencer = Inferencer(Classifier(), preprocess=parse, batch_size=4)
    inferencer(TEXTS)
    assert capsys.readouterr().err == ""
    results = inferencer.stream(TEXTS, progress=True)
    next(results)
    results.close()
    inferencer(TEXTS, progress=True)
    assert "11/11" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    inferencer(TEXTS[0])
    assert terminal.getvalue() == ""
    list(inferencer(iter(TEXTS)))
    assert "11/?" in terminal.getvalue()
