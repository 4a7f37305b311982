"""A run whose work dir is in a store that asks for keys: all that it writes and reads goes by those given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from stratrun import Runner
from tests.stores import Store


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def trained(epochs: int, work_dir: str, options: dict[str, Any], **more: Any) -> Runner:
    torch.manual_seed(0)
    runner = Runner(
        torch.nn.Linear(2, 2),
        loss="cross_entropy",
        train_dataloader={
            "dataset": TensorDataset(torch.randn(8, 2), torch.tensor([0, 1] * 4)),
            "batch_size": 4,
        },
        train_cfg={"max_epochs": epochs},
        optimizer={"type": "SGD", "lr": 0.1},
        checkpoint_cfg={"storage_options": options},
        randomness={"seed": 0},
        loggers="jsonl",
        work_dir=work_dir,
        **more,
    )
    runner.train()
    runner.close()
    return runner


def test_checkpoints_and_logs_go_to_a_store_whose_keys_are_given_with_the_run(s3: Store) -> None:
    trained(1, f"{s3.url}/run", s3.options)
    names = [key.rpartition("/")[2] for key in s3.files()]
    assert "COMMITTED" in names
    assert "metrics.jsonl" in names
    assert trained(2, f"{s3.url}/run", s3.options, resume=True).iter == 4


def test_a_url_to_resume_from_is_opened_with_the_same_keys(s3: Store, tmp_path: Path) -> None:
    trained(1, f"{s3.url}/run", s3.options)
    assert trained(2, str(tmp_path / "local"), s3.options, resume=f"{s3.url}/run/last").iter == 4


def test_weights_are_loaded_from_a_url_with_the_same_keys(s3: Store, tmp_path: Path) -> None:
    saved = trained(1, f"{s3.url}/run", s3.options)
    loaded = trained(1, str(tmp_path / "local"), s3.options, load_from=f"{s3.url}/run/last")
    assert loaded.iter == 2
    assert loaded.load_report is not None
    assert not torch.equal(loaded.model.weight, saved.model.weight)
