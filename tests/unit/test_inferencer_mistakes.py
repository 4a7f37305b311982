"""What an Inferencer refuses, and what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratrun import Inferencer, Runner
from stratrun.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    IncompatibleError,
    MissingArgumentError,
    ModelError,
    UnknownNameError,
)
from tests.problems import points
from tests.ranks import Ranks
from tests.unit.test_inferencer import TEXTS, Classifier, config, parse, registered, train, work_dir

__all__ = ["registered", "work_dir"]


def test_an_error_of_the_user_says_at_which_input() -> None:
    inferencer = Inferencer(Classifier(), preprocess=parse, batch_size=4)
    with pytest.raises(ValueError, match="could not convert") as caught:
        inferencer([*TEXTS[:5], "no number"])
    assert "in preprocess, of input 5: no number" in caught.value.__notes__


def test_outputs_without_a_row_for_each_input_are_refused() -> None:
    class Total(nn.Module):
        def predict_step(self, batch: Tensor) -> Tensor:
            return batch.sum()

    with pytest.raises(ModelError, match=r"Total returned Tensor\(\) for a batch of 2 inputs"):
        Inferencer(Total())([torch.ones(1)] * 2)


class Evil:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("ran").touch, ())


def test_a_file_of_weights_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "w.pt")
    with pytest.raises(CheckpointError, match="which is never run"):
        Inferencer(Classifier(), "w.pt")
    assert not Path("ran").exists()


def test_a_damaged_checkpoint_is_refused(work_dir: str) -> None:
    [shard] = Path(work_dir, "checkpoints/step-00000006").glob("shard-*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 :: 16] = bytes(byte ^ 1 for byte in data[len(data) // 2 :: 16])
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        Inferencer.from_run(work_dir, "step-00000006")


def test_a_config_out_of_a_checkpoint_imports_nothing_unless_allowed(tmp_path: Path) -> None:
    train(str(tmp_path), model={"type": f"{__name__}.Classifier"})
    with pytest.raises(ConfigError, match="would import code"):
        Inferencer.from_run(tmp_path)
    Inferencer.from_run(tmp_path, allow="tests")
    Inferencer.from_run(tmp_path, model=Classifier(), preprocess=parse)


def never() -> nn.Module:
    raise AssertionError("the model was built")


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, MissingArgumentError, "needs model=... or config=..."),
        ({"model": never, "batchsize": 2}, ConfigError, "no argument 'batchsize'; did you mean 'batch_size'"),
        ({"model": never, "batch_size": 0}, ConfigError, "batch_size=0 must be a whole number above 0"),
        ({"model": never, "preprocess": 3}, ConfigError, "preprocess=3 cannot be called"),
        ({"model": never, "preprocess": "prase"}, UnknownNameError, "did you mean 'parse'"),
        ({"model": never, "postprocess": "prase"}, UnknownNameError, "postprocess='prase'"),
        ({"model": never, "collate": "nothing"}, UnknownNameError, "collate='nothing'"),
        ({"model": never, "weights": "best"}, ConfigError, "weights='best': of which run"),
        ({"model": never, "weights": "nowhere/w.pt"}, CheckpointNotFoundError, "does not exist"),
        ({"model": never, "weights": {"path": "w", "weight": "ema"}}, ConfigError, "did you mean 'weights'"),
        ({"model": never, "accelerator": "gpu"}, UnknownNameError, "accelerator='gpu'"),
        ({"model": never, "precision": "half"}, UnknownNameError, "precision='half'"),
        ({"config": config(model=never)}, MissingArgumentError, "which weights"),
        ({"config": {"loss": "mse_loss"}, "weights": "w.pt"}, ConfigError, "the config has no 'model'"),
        (
            {"config": config(inference_cfg={"batch": 1}), "weights": "w.pt"},
            ConfigError,
            "did you mean 'batch_size'",
        ),
        ({"model": {"type": "Clasifier"}, "weights": "w.pt"}, UnknownNameError, "did you mean 'Classifier'"),
    ],
)
def test_mistakes_are_told_before_anything_is_built(
    options: dict[str, Any],
    error: type[Exception],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        Inferencer(**options)
    assert told in str(caught.value)


def test_a_run_that_is_not_there_or_has_no_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no run in .*, which does not exist"):
        Inferencer.from_run(tmp_path / "nowhere")
    form = {key: value for key, value in config().items() if key != "inference_cfg"}
    runner = Runner(
        **{**form, "model": Classifier()},
        train_dataloader={"dataset": points(4), "batch_size": 4},
        train_cfg={"max_epochs": 1},
        optimizer={"type": "SGD", "lr": 0.5},
        loggers=(),
        work_dir=str(tmp_path / "run"),
    )
    runner.train()
    runner.close()
    with pytest.raises(CheckpointError, match=r"has no config, .* give model=..."):
        Inferencer.from_run(tmp_path / "run")
    with pytest.raises(CheckpointNotFoundError, match="did you mean 'best'"):
        Inferencer.from_run(tmp_path / "run", "bset")
    with pytest.raises(CheckpointNotFoundError, match="step-00000009 does not exist; steps there: 1"):
        Inferencer.from_run(tmp_path / "run", "step-00000009")
    with pytest.raises(CheckpointNotFoundError, match="no metric was watched"):
        Inferencer.from_run(tmp_path / "run", "best")


def test_the_form_of_a_run_is_told_of_wrong_steps_before_it_trains() -> None:
    runner = Runner(never, predict_dataloader=points(2), inference_cfg={"preproces": parse})
    with pytest.raises(
        ConfigError, match="inference_cfg has no setting 'preproces'; did you mean 'preprocess'"
    ):
        runner.predict()


def refused() -> str:
    try:
        Inferencer(Classifier())
    except IncompatibleError as error:
        return str(error)
    return ""


def test_several_processes_are_told_what_to_use_instead(two_ranks: Ranks) -> None:
    for told in two_ranks(refused):
        assert "an Inferencer works in one process, and 2 were launched" in told
