import io
import marshal
import os
import pickle
import posix
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from stratrun.checkpoint import layout, read_weights
from stratrun.errors import CheckpointCorruptedError, CheckpointError, CheckpointNotFoundError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, same, shared_state


@pytest.fixture
def weights():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def test_our_checkpoints_give_the_model_alone(tmp_path):
    for step in (1, 2):
        checkpointer(tmp_path / "checkpoints").save(step, shared_state(step))
    for place, step in (
        (tmp_path / "checkpoints/step-00000001", 1),
        (tmp_path / "checkpoints", 2),
        (tmp_path, 2),
    ):
        assert same(read_weights(place), shared_state(step)["model"])


def test_a_checkpoint_at_a_url_is_read_like_one_on_disk():
    url = f"memory://{uuid.uuid4().hex}/checkpoints"
    checkpointer(url).save(1, shared_state(1))
    assert same(read_weights(f"{url}/step-00000001"), shared_state(1)["model"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "loss": torch.tensor(0.5)},
        lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
        lambda w: {"model_state_dict": w},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict"],
)
def test_files_of_torch_save_are_read_bare_and_nested(tmp_path, weights, suffix, nest):
    torch.save(nest(weights), tmp_path / f"w{suffix}")
    assert same(read_weights(tmp_path / f"w{suffix}"), dict(weights))


def test_the_old_format_of_torch_save_is_read(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "w.pt"), dict(weights))


def test_files_at_a_url_are_read(weights, tmp_path):
    folder = Folder(f"memory://{uuid.uuid4().hex}")
    torch.save(weights, tmp_path / "w.pt")
    folder.write_bytes("w.pt", (tmp_path / "w.pt").read_bytes())
    folder.write_bytes("w.safetensors", safetensors.torch.save(dict(weights)))
    for name in ("w.pt", "w.safetensors"):
        back = read_weights(f"{folder}/{name}")
        assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_safetensors_files_are_read(tmp_path, weights):
    safetensors.torch.save_file(dict(weights), tmp_path / "w.safetensors")
    back = read_weights(str(tmp_path / "w.safetensors"))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


class Payload:
    def __init__(self, function, *args):
        self._made = (function, args)

    def __reduce__(self):
        return self._made


class State:
    def __setstate__(self, state):
        exec(state)


@dataclass
class Record:
    lr: float


def payloads(canary):
    """What would run, or at least be built, and the name that the refusal must give."""
    command = f"touch {canary}"
    run = f"open({str(canary)!r}, 'w')"
    state = State()
    state.code = run
    inner = pickle.dumps(Payload(os.system, command))
    return {
        "os.system": (Payload(os.system, command), "posix.system"),
        "an alias of it": (Payload(posix.system, command), "posix.system"),
        "eval": (Payload(eval, run), "(eval)"),
        "exec": (Payload(exec, run), "(exec)"),
        "open": (Payload(open, str(canary), "w"), "io.open"),
        "a lambda": (Payload(marshal.loads, marshal.dumps((lambda: 0).__code__)), "marshal.loads"),
        "a class that runs what it is set to": (state, "tests.unit.test_checkpoint_weights.State"),
        "a dataclass": (Record(0.1), "tests.unit.test_checkpoint_weights.Record"),
        "a hub": (Payload(torch.hub.load, "someone/repo", "model"), "torch.hub.load"),
        "bytes of a storage": (
            Payload(torch.storage._load_from_bytes, inner),
            "torch.storage._load_from_bytes",
        ),
        "pickle in pickle": (Payload(pickle.loads, inner), "ickle.loads"),
        "torch.load of more": (Payload(torch.load, str(canary)), "torch.serialization.load"),
        "an object array": (np.array([Payload(os.system, command)], dtype=object), "numpy"),
        "a whole module": (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        "hidden in a list": ([1, {"deep": Payload(os.system, command)}], "posix.system"),
    }


PLACES = {
    "alone": lambda payload: payload,
    "beside weights": lambda payload: {"state_dict": {"w": torch.ones(1), "x": payload}},
    "in the state of a hook": lambda payload: {"model": {"w": torch.ones(1)}, "hooks": {"EMA": payload}},
    "in that of an optimizer": lambda payload: {
        "model": {"w": torch.ones(1)},
        "optimizer": {"state": payload},
    },
}


@pytest.mark.parametrize("name", list(payloads("x")))
@pytest.mark.parametrize("place", list(PLACES))
def test_code_in_a_file_of_others_is_refused_by_its_name_and_never_run(tmp_path, name, place):
    canary = tmp_path / "canary"
    payload, culprit = payloads(canary)[name]
    torch.save(PLACES[place](payload), tmp_path / "w.pt")
    with pytest.raises(
        CheckpointError, match=r"w.pt holds more than tensors .* never run; save the state dict"
    ) as e:
        read_weights(tmp_path / "w.pt")
    assert culprit in str(e.value)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["index.json", "state.json", "manifest.json", "COMMITTED", "shard", "extra"])
def test_a_pickle_in_the_place_of_a_file_of_ours_is_refused_and_never_run(tmp_path, name):
    canary = tmp_path / "canary"
    checkpointer(tmp_path / "run").save(1, shared_state(1))
    folder = tmp_path / "run" / "step-00000001"
    data = pickle.dumps(Payload(os.system, f"touch {canary}"))
    (folder / {"shard": layout.shard_name(0, 1), "extra": ".metadata"}.get(name, name)).write_bytes(data)
    if name == "extra":  # what torch's own checkpoints have, and unpickle
        assert same(read_weights(folder), shared_state(1)["model"])
    else:
        with pytest.raises(CheckpointCorruptedError):
            read_weights(folder)
    assert not canary.exists()


def test_a_checkpoint_of_torchs_own_format_is_not_read(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Payload(os.system, f"touch {canary}")))
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint in"):
        read_weights(tmp_path / "dcp")
    with pytest.raises(CheckpointError, match="no file of weights by its name"):
        read_weights(tmp_path / "dcp" / ".metadata")
    assert not canary.exists()


def test_a_bare_pickle_is_refused_and_never_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Payload(os.system, f"touch {canary}"), protocol=2))
    with pytest.raises(CheckpointError, match=r"w\.pt holds more .* \(posix\.system\)"):
        read_weights(tmp_path / "w.pt")
    assert not canary.exists()


def test_a_flipped_bit_in_a_file_of_torch_save_is_found(tmp_path, weights):
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    data = bytearray(path.read_bytes())
    at = data.index(weights["0.weight"].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointCorruptedError, match=r"checksum of .*data/.* does not match"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_file_that_was_cut_short_is_called_damaged(tmp_path, weights, name, size):
    path = tmp_path / name
    if name == "w.pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(dict(weights), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=name):
        read_weights(path)


def test_what_is_not_there_names_what_is_nearby(tmp_path, weights):
    torch.save(weights, tmp_path / "resnet18.pt")
    with pytest.raises(
        CheckpointNotFoundError, match=r"resnet81\.pt does not exist; did you mean 'resnet18\.pt'"
    ):
        read_weights(tmp_path / "resnet81.pt")
    for step in (10, 20):
        checkpointer(tmp_path / "run").save(step, shared_state(step))
    with pytest.raises(CheckpointNotFoundError, match=r"step-00000015 does not exist; steps there: 10, 20"):
        read_weights(tmp_path / "run/step-00000015")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint in .*empty"):
        read_weights(tmp_path / "empty")


def test_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"no weights at its top or below state_dict.*'epoch', 'lr'"):
        read_weights(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="it has a list"):
        read_weights(tmp_path / "w.pt")


def test_a_file_of_unknown_kind_is_refused_by_name(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"those end in \.safetensors, \.pt"):
        read_weights(tmp_path / "w.onnx")


def test_a_checkpoint_without_a_model_says_what_it_has(tmp_path):
    checkpointer(tmp_path).save(1, {"net": {"w": torch.ones(1)}, "train": {}})
    with pytest.raises(CheckpointError, match="has no 'model'; it holds net, train"):
        read_weights(tmp_path)


def test_no_damage_to_a_file_of_torch_save_leads_to_anything_but_an_error_that_names_it(tmp_path):
    random = Random(0)
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.ones(3)}, zipped)
    torch.save({"a": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    path = tmp_path / "weights.pt"
    found = Counter()
    for source in (zipped.getvalue(), legacy.getvalue()):
        for _ in range(150):
            damaged = bytearray(source)
            damaged[random.randrange(len(source))] ^= 1 << random.randrange(8)
            path.write_bytes(random.choice((damaged, source[: random.randrange(len(source))])))
            found[outcome(path)] += 1
    for _ in range(150):
        path.write_bytes(random.randbytes(random.choice((0, 1, 2, 10, 300))))
        found[outcome(path)] += 1
    assert found.keys() <= {"read", "refused"}
    assert found["refused"] > 300


def outcome(path):
    try:
        read_weights(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return "refused"
    return "read"


def test_a_path_without_a_folder_is_told_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("junk.pt").write_bytes(b"")
    with pytest.raises(CheckpointCorruptedError, match=r"^junk\.pt is empty"):
        read_weights("junk.pt")


def test_weights_are_read_by_the_name_of_a_checkpoint(tmp_path):
    saver = checkpointer(tmp_path / "run/checkpoints")
    for step in (1, 2):
        saver.save(step, shared_state(step))
    assert same(read_weights(tmp_path / "run/last"), dict(shared_state(2)["model"]))
