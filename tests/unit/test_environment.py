"""What `env_cfg` and `randomness` set in the process."""

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch

from stratrun.runner.environment import parse_env, parse_randomness


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cudnn, started = torch.backends.cudnn, multiprocessing.get_start_method(allow_none=True)
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before[:3]
    torch.set_float32_matmul_precision(before[3])
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    multiprocessing.set_start_method(started, force=True)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_each_setting_of_the_process_is_applied() -> None:
    threads = torch.get_num_threads() + 1
    settings = parse_env(
        {
            "cudnn_benchmark": True,
            "tf32": True,
            "num_threads": threads,
            "mp_start_method": "spawn",
            "timeout": 7,
        }
    )
    settings.apply()
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_num_threads() == threads
    assert multiprocessing.get_start_method() == "spawn"
    assert settings.group_timeout.total_seconds() == 7
    parse_env({"cudnn_benchmark": False, "tf32": False}).apply()
    assert not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_is_not_set_stays_as_it_is() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    parse_env(None).apply()
    parse_randomness({"seed": 1}).apply()
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_refuses_what_has_no_deterministic_way() -> None:
    parse_randomness({"deterministic": True}).apply()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
