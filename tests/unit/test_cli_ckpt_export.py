"""Weights as one safetensors file: what it holds, who can read it, and that it is whole or not there."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import Tensor, nn

from stratrun.checkpoint import export_weights, read_weights
from stratrun.cli.main import run
from stratrun.errors import CheckpointCorruptedError, CheckpointError, CheckpointNotFoundError, ConfigError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, same, shared_state


class Tied(nn.Module):
    """Weights of several kinds: tied, a buffer, half precision, whole numbers, nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.small = nn.Parameter(torch.randn(3).bfloat16())
        self.register_buffer("none", torch.zeros(0, 5))


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Folder]:
    """Save a model, with averages if given, as step 3. Returns the checkpoint."""

    def do(model: nn.Module, averages: Any = None, **hooks: Any) -> Folder:
        states = {"TimerHook": {}, **hooks}
        if averages is not None:
            states["EMAHook"] = {"averages": averages, "updates": 7}
        state = {"model": model.state_dict(), "hooks": states}
        checkpointer(tmp_path / "w" / "checkpoints").save(3, state)
        return Folder(tmp_path / "w" / "checkpoints" / "step-00000003")

    return do


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def test_the_file_holds_the_model_bit_by_bit_tied_weights_by_both_names(
    tmp_path: Path, model: Tied, save: Callable[..., Folder]
) -> None:
    checkpoint = save(model)
    done = export_weights(tmp_path / "w", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert equal(found, dict(model.state_dict()))
    assert equal(read_weights(tmp_path / "a.safetensors"), dict(model.state_dict()))
    other = Tied()
    other.load_state_dict(found, strict=True)
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    assert (done.step, done.tensors, done.source) == (3, len(found), checkpoint.url)
    assert done.size == (tmp_path / "a.safetensors").stat().st_size


def test_the_header_says_where_it_is_from(tmp_path: Path, model: Tied, save: Callable[..., Folder]) -> None:
    export_weights(save(model), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "3", "run_id": "run", "weights": "model"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_only_floating_point_tensors_are_converted(
    tmp_path: Path, model: Tied, save: Callable[..., Folder], dtype: str
) -> None:
    save(model)
    kind = getattr(torch, dtype)
    assert run(["ckpt", "export", f"{tmp_path}/w", "-o", f"{tmp_path}/a.safetensors", "--dtype", dtype]) == 0
    expected = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    assert expected["norm.num_batches_tracked"].dtype == torch.int64
    assert equal(load_file(tmp_path / "a.safetensors"), expected)


def test_a_value_that_the_dtype_does_not_reach_is_an_error_and_leaves_no_file(
    tmp_path: Path, model: Tied, save: Callable[..., Folder]
) -> None:
    with torch.no_grad():
        model.norm.bias[:2] = torch.tensor([float("inf"), 70000.0])
    save(model)
    with pytest.raises(CheckpointError, match=r"'norm.bias' holds 70000, which torch.float16 does not reach"):
        export_weights(tmp_path / "w", tmp_path / "out" / "a.safetensors", dtype=torch.float16)
    assert list((tmp_path / "out").iterdir()) == []
    export_weights(tmp_path / "w", tmp_path / "a.safetensors", dtype=torch.bfloat16)


def test_averages_take_the_place_of_what_they_average_and_buffers_are_the_model_s(
    tmp_path: Path, model: Tied, save: Callable[..., Folder]
) -> None:
    # By one of the names of the tied weight only, as parameters are listed.
    averages = {name: value.detach().float() + 1 for name, value in model.named_parameters()}
    assert "head.weight" not in averages
    save(model, averages)
    assert (
        run(["ckpt", "export", f"{tmp_path}/w", "--weights", "ema", "-o", f"{tmp_path}/e.safetensors"]) == 0
    )
    expected = {**model.state_dict(), **averages, "head.weight": averages["embed.weight"]}
    assert equal(load_file(tmp_path / "e.safetensors"), expected)


def test_averages_of_a_model_beside_a_loss_with_weights_are_found(
    tmp_path: Path, save: Callable[..., Folder]
) -> None:
    both = nn.ModuleDict({"model": nn.Linear(2, 2), "loss": nn.Linear(1, 1)})
    averages = {name: value.detach() * 2 for name, value in both["model"].named_parameters()}
    save(both, averages)
    export_weights(tmp_path / "w", tmp_path / "e.safetensors", weights="ema")
    found = load_file(tmp_path / "e.safetensors")
    assert torch.equal(found["model.weight"], averages["weight"])
    assert torch.equal(found["loss.weight"], both["loss"].weight)


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ({}, r"no moving averages: its hooks with state are TimerHook; .*type='EMAHook'"),
        ({"averages": {}}, "no moving averages yet"),
        ({"averages": {"small": torch.ones(3), "smoll": torch.ones(3)}}, r"averages 'smoll', .* 'small'"),
        ({"EMAHook#2": {"averages": {}}, "averages": {}}, "several moving averages, of EMAHook"),
    ],
)
def test_averages_that_are_not_there_are_an_error_that_says_why(
    tmp_path: Path, model: Tied, save: Callable[..., Folder], hooks: dict[str, Any], told: str
) -> None:
    save(model, **hooks)
    with pytest.raises(CheckpointError, match=told):
        export_weights(tmp_path / "w", tmp_path / "e.safetensors", weights="ema")
    assert not (tmp_path / "e.safetensors").exists()


def test_a_file_that_is_there_is_replaced_only_with_force_and_then_whole(
    tmp_path: Path, model: Tied, save: Callable[..., Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    save(model)
    output = tmp_path / "out" / "a.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"mine")
    assert run(["ckpt", "export", f"{tmp_path}/w", "-o", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"
    with torch.no_grad():
        model.norm.bias[0] = 70000.0
    assert run(["ckpt", "export", f"{tmp_path}/w", "-o", str(output), "--force"]) == 0
    assert equal(load_file(output), dict(Tied().state_dict()) | load_file(output))
    assert [path.name for path in output.parent.iterdir()] == ["a.safetensors"]


def test_a_damaged_checkpoint_is_not_exported_and_an_older_file_stays(
    tmp_path: Path, model: Tied, save: Callable[..., Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(model)
    shard = next(Path(folder.local_path() or "").glob("shard*"))
    data = bytearray(shard.read_bytes())
    data[-60] ^= 1
    shard.write_bytes(bytes(data))
    output = tmp_path / "out" / "a.safetensors"
    output.parent.mkdir()
    output.write_bytes(b"old")
    with pytest.raises(CheckpointCorruptedError, match=r"step-00000003 is damaged: shard.*; steps there: 3"):
        export_weights(folder, output, force=True)
    assert run(["ckpt", "export", f"{tmp_path}/w", "-o", str(output), "--force"]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert [path.name for path in output.parent.iterdir()] == ["a.safetensors"]


def test_from_a_store_and_into_one(tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}"
    checkpointer(Folder(place).child("checkpoints")).save(3, shared_state(3))
    assert run(["ckpt", "export", place, "-o", f"{place}/out/w.safetensors"]) == 0
    with fsspec.open(f"{place}/out/w.safetensors") as file:
        assert equal(load(file.read()), shared_state(3)["model"])


def test_a_store_never_shows_half_a_file(tmp_path: Path, model: Tied, save: Callable[..., Folder]) -> None:
    with torch.no_grad():
        model.small.copy_(torch.tensor([1e30, 1, 1]))
    save(model)
    output = f"memory://{tmp_path.name}/out.safetensors"
    with pytest.raises(CheckpointError, match="does not reach"):
        export_weights(tmp_path / "w", output, dtype="float16")
    assert not Folder(output).exists()


def test_without_an_output_the_file_is_named_after_its_step(
    tmp_path: Path, model: Tied, save: Callable[..., Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model, {"small": torch.ones(3)})
    monkeypatch.chdir(tmp_path)
    assert run(["ckpt", "export", "w"]) == run(["ckpt", "export", "w", "--weights", "ema"]) == 0
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "step-00000003.safetensors",
        "step-00000003-ema.safetensors",
    }


def test_entries_that_are_no_tensors_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"model": {"weight": torch.ones(2), "_extra_state": {"scale": 3}}}
    checkpointer(tmp_path / "w").save(1, state)
    assert run(["ckpt", "export", f"{tmp_path}/w", "-o", f"{tmp_path}/a.safetensors"]) == 0
    assert "left out: _extra_state, which is no tensor" in capsys.readouterr().out
    assert list(load_file(tmp_path / "a.safetensors")) == ["weight"]


def test_only_one_tensor_at_a_time_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Folder]
) -> None:
    import gc

    size = 1_000_003
    model = nn.ParameterList([nn.Parameter(torch.full((size,), float(i))) for i in range(4)])
    save(model)
    most = 0

    def large() -> int:
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is Tensor and one.device.type == "cpu"]
        return sum(one.numel() == size for one in tensors)

    before = large()
    import stratrun.checkpoint.export as export

    bytes_of = export._bytes_of

    def watched(tensor: Tensor) -> Any:
        nonlocal most
        most = max(most, large() - before)
        yield from bytes_of(tensor)

    monkeypatch.setattr(export, "_bytes_of", watched)
    monkeypatch.setattr("stratrun.checkpoint.source._AT_ONCE", 1000)
    export_weights(tmp_path / "w", tmp_path / "a.safetensors")
    assert most == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--weights emma", "--weights emma is unknown; did you mean 'ema'?"),
        ("--dtype float61", "--dtype float61 is unknown; did you mean 'float16'?"),
        ("-o out.pt", "must end in .safetensors"),
    ],
)
def test_a_wrong_option_is_a_mistake(
    tmp_path: Path,
    model: Tied,
    save: Callable[..., Folder],
    capsys: pytest.CaptureFixture[str],
    words: str,
    told: str,
) -> None:
    save(model)
    assert run(["ckpt", "export", f"{tmp_path}/w", *words.split()]) == 2
    assert told in capsys.readouterr().err


def test_in_python_a_wrong_argument_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights='averages' is unknown"):
        export_weights(tmp_path, tmp_path / "a.safetensors", weights="averages")
    with pytest.raises(ConfigError, match=r"dtype=torch.int8 is unknown; "):
        export_weights(tmp_path, tmp_path / "a.safetensors", dtype=torch.int8)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint in"):
        export_weights(tmp_path, tmp_path / "a.safetensors")


def test_the_head_is_what_the_format_asks_for(
    tmp_path: Path, model: Tied, save: Callable[..., Folder]
) -> None:
    save(model)
    export_weights(tmp_path / "w", tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    places = sorted(tuple(field["data_offsets"]) for name, field in fields.items() if name != "__metadata__")
    assert (8 + length) % 64 == 0
    assert places[0][0] == 0 and places[-1][1] == len(data) - 8 - length
    assert all(one[1] == other[0] for one, other in pairwise(places))
