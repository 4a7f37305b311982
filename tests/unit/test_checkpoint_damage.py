"""Bytes that changed after they were committed never reach a run."""

import os
import random
import shutil

import pytest
import torch

from stratrun.checkpoint import Checkpointer, StoredCheckpoint, layout, read_weights, shards
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import CheckpointCorruptedError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, own_state, same, save_tensors, shared_state

FLIPS = 1000
TRUNCATIONS = 200


@pytest.fixture
def saved(tmp_path):
    for step in (1, 2):
        checkpointer(tmp_path).save(step, shared_state(step), own_state(step))
    return tmp_path


def falls_back(place):
    loaded = checkpointer(place).load()
    return loaded.shared["train"]["iter"] == 1 and list(loaded.passed_over) == [2]


def files_of(place):
    return sorted((place / "step-00000002").iterdir())


def test_every_flipped_bit_is_found_and_the_older_one_used(saved):
    draw = random.Random(0)
    files = files_of(saved)
    for trial in range(FLIPS):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert falls_back(saved), f"bit {bit} of {path.name}"
        path.write_bytes(whole)
    assert same(checkpointer(saved).load().shared, shared_state(2))


def test_every_truncation_is_found_and_the_older_one_used(saved):
    draw = random.Random(1)
    files = files_of(saved)
    for path in files:
        whole = path.read_bytes()
        fixed = [0, 1, len(whole) // 2, len(whole) * 99 // 100, len(whole) - 1]
        drawn = draw.choices(range(len(whole)), k=TRUNCATIONS // len(files) - len(fixed))
        for size in [*fixed, *drawn]:
            path.write_bytes(whole[:size])
            assert falls_back(saved), f"{path.name} cut to {size} bytes"
        path.write_bytes(whole + b"\0")
        assert falls_back(saved), f"{path.name} grown by a byte"
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [layout.shard_name(0, 1), layout.INDEX, layout.STATE, layout.MANIFEST])
def test_a_deleted_file_is_named_and_the_older_one_used(saved, name):
    (saved / "step-00000002" / name).unlink()
    loaded = checkpointer(saved).load()
    assert loaded.meta["step"] == 1
    assert name in loaded.passed_over[2]


def test_without_its_marker_it_is_no_checkpoint_and_no_damaged_one(saved):
    (saved / "step-00000002" / layout.COMMITTED).unlink()
    loaded = checkpointer(saved).load()
    assert loaded.meta["step"] == 1
    assert loaded.passed_over == {}


@pytest.mark.parametrize(
    "name", [layout.shard_name(0, 1), layout.INDEX, layout.STATE, layout.MANIFEST, layout.COMMITTED]
)
def test_files_swapped_between_checkpoints_are_found(saved, name):
    one, other = saved / "step-00000001" / name, saved / "step-00000002" / name
    shutil.move(one, saved / "aside")
    shutil.move(other, one)
    shutil.move(saved / "aside", other)
    with pytest.raises(CheckpointCorruptedError, match=r"every checkpoint in .* step 2: .* step 1: "):
        checkpointer(saved).load()


def save_two(place):
    ours = Checkpointer(Folder(place), Collectives(ProcessEnv.from_environ(os.environ)), run_id="run")
    for step in (1, 2):
        ours.save(step, shared_state(step), own_state(step, ours._ranks.rank))


def test_the_shards_of_two_ranks_swapped_are_found(two_ranks, tmp_path):
    two_ranks(save_two, str(tmp_path))
    one, other = (tmp_path / "step-00000002" / layout.shard_name(rank, 2) for rank in (0, 1))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    assert falls_back(tmp_path)


def test_shards_of_one_size_swapped_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_PER_FILE", 500)
    stored = save_tensors(Folder(tmp_path), {"a": torch.zeros(100), "b": torch.ones(100)})
    one, other = (tmp_path / "step-00000001" / layout.shard_name(0, 1, part) for part in (1, 2))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    for read in (stored.read, stored.verify, lambda: stored.read_part("a"), lambda: stored.read_part("b")):
        with pytest.raises(CheckpointCorruptedError, match=r"-part-\d\.safetensors is damaged"):
            read()


def test_a_damaged_shard_of_another_rank_is_found_by_verifying(saved):
    StoredCheckpoint(Folder(saved / "step-00000002")).verify()
    path = saved / "step-00000002" / layout.shard_name(0, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointCorruptedError, match=f"{path.name} is damaged"):
        StoredCheckpoint(Folder(saved / "step-00000002")).verify()


def test_weights_read_alone_are_verified_too(saved):
    path = saved / "step-00000002" / layout.shard_name(0, 1)
    whole, weights, found = path.read_bytes(), shared_state(2)["model"], 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert same(read_weights(saved / "step-00000002"), weights)
        except CheckpointCorruptedError as error:
            assert "step-00000002 is damaged" in str(error)
            found += 1
    assert found >= sum(t.nbytes for t in weights.values()) // 14
