import logging
import os
import re
import uuid

import pytest
import safetensors.torch
import torch

from stratrun.checkpoint import Checkpointer, StoredCheckpoint, layout
from stratrun.checkpoint.retention import superfluous
from stratrun.distributed import Collectives, ProcessEnv
from stratrun.errors import (
    CheckpointCorruptedError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
)
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, full_disk, own_state, same, shared_state


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    place = (
        tmp_path / "checkpoints" if request.param == "local" else f"memory://{uuid.uuid4().hex}/checkpoints"
    )
    return Folder(place)


def save(folder, *steps, run_id="run", **kwargs):
    ours = checkpointer(folder, run_id)
    return [ours.save(step, shared_state(step), own_state(step), **kwargs) for step in steps]


def steps_in(folder):
    return [layout.step_of(name) for name in folder.names()]


def test_what_was_saved_is_loaded_bit_for_bit(folder):
    save(folder, 12, meta={"config": {"lr": 1e-3}})
    loaded = checkpointer(folder, "another").load()
    assert same(loaded.shared, shared_state(12))
    assert same(loaded.own, own_state(12))
    assert loaded.meta == {"config": {"lr": 1e-3}, "step": 12, "run_id": "run", "world_size": 1}
    assert loaded.url == f"{folder}/step-00000012"


def test_the_folder_has_the_documented_files_and_nothing_else_remains(folder):
    save(folder, 12)
    assert folder.names() == ["step-00000012"]
    *others, shard, state = folder.child("step-00000012").names()
    assert [*others, state] == ["COMMITTED", "index.json", "manifest.json", "state.json"]
    # Where a late writer of a dead attempt could come upon another's files, names tell them apart.
    of_attempt = "" if folder.is_local else r"\.run\.[0-9a-f]{8}"
    assert re.fullmatch(rf"shard-00000-of-00001{of_attempt}\.safetensors", shard)


def test_any_reader_of_safetensors_reads_the_tensors(tmp_path):
    save(Folder(tmp_path), 3)
    tensors = safetensors.torch.load_file(tmp_path / "step-00000003/shard-00000-of-00001.safetensors")
    assert torch.equal(tensors["model/fc.weight"], shared_state(3)["model"]["fc.weight"])
    assert "model/tied.weight" not in tensors


@pytest.mark.parametrize(
    "dtype",
    [getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)],
    ids=str,
)
def test_every_dtype_comes_back_or_is_refused_by_name(dtype, tmp_path):
    try:
        tensor = torch.arange(4).view(torch.uint8).repeat(4).clone().view(dtype)
    except (RuntimeError, TypeError, ValueError):
        pytest.skip("torch itself makes no such tensor")
    try:
        save_one(tmp_path, tensor)
    except CheckpointError as error:
        assert str(dtype) in str(error) or "quantized" in str(error)
        return
    assert same(checkpointer(tmp_path).load().shared["x"], tensor)


def save_one(place, value):
    return checkpointer(place).save(1, {"x": value})


def test_order_is_by_step_and_not_by_time_or_name(tmp_path):
    save(Folder(tmp_path), 100_000_000, 9, 12)
    os.utime(tmp_path / "step-00000012", (2e9, 2e9))
    assert checkpointer(tmp_path).load().meta["step"] == 100_000_000


def test_a_step_of_this_run_is_never_written_again(folder, caplog):
    ours = checkpointer(folder)
    first = ours.save(5, shared_state(5))
    before = folder.child("step-00000005").read_bytes("manifest.json")
    with caplog.at_level(logging.INFO, "stratrun.checkpoint"):
        assert ours.save(5, shared_state(6)) == first
        assert checkpointer(folder).save(5, shared_state(6)) == first
    assert folder.child("step-00000005").read_bytes("manifest.json") == before
    assert [record.message for record in caplog.records] == [f"{first} is there already"] * 2
    assert same(checkpointer(folder).load().shared, shared_state(5))


def test_a_step_of_another_run_is_neither_overwritten_nor_taken_for_ours(folder):
    save(folder, 5, run_id="theirs")
    with pytest.raises(CheckpointError, match="other run 'theirs'"):
        save(folder, 5, run_id="ours")
    assert same(checkpointer(folder).load().shared, shared_state(5))


def test_a_damaged_step_is_written_anew(folder):
    save(folder, 4, 5)
    folder.child("step-00000005").write_bytes("state.json", b"{}")
    resumed = checkpointer(folder, "resumed")
    assert resumed.load().meta["step"] == 4
    resumed.claim(after=4)
    resumed.save(5, shared_state(50))
    assert same(checkpointer(folder).load().shared, shared_state(50))
    assert folder.names() == ["step-00000004", "step-00000005"]


def test_an_unfinished_folder_is_ignored_and_gives_way(folder):
    save(folder, 4, 5)
    folder.child("step-00000005").remove("COMMITTED")
    assert checkpointer(folder).load().meta["step"] == 4
    save(folder, 5)
    assert checkpointer(folder).load().meta["step"] == 5


def test_leftovers_of_this_run_are_removed_and_those_of_others_are_not(tmp_path):
    folder = Folder(tmp_path)
    for run_id in ("run", "theirs"):
        folder.write_bytes(f".staging-step-00000001.{run_id}.abcd/x", b"1")
        folder.write_bytes(f".trash-step-00000001.{run_id}.abcd/x", b"1")
    save(folder, 2)
    assert folder.names() == [
        ".staging-step-00000001.theirs.abcd",
        ".trash-step-00000001.theirs.abcd",
        "step-00000002",
    ]


def test_none_there_and_all_damaged_are_different_errors(folder):
    ours = checkpointer(folder)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint in"):
        ours.load()
    save(folder, 1, 2)
    for step in (1, 2):
        folder.child(layout.name_of(step)).remove("state.json")
    with pytest.raises(CheckpointCorruptedError, match=r"step 2: state.json is missing; step 1: state.json"):
        ours.load()


def test_a_damaged_newest_is_passed_over_with_its_reason(folder, caplog):
    save(folder, 1, 2, 3)
    folder.child("step-00000003").write_bytes("index.json", b"{}")
    folder.child("step-00000002").remove("manifest.json")
    loaded = checkpointer(folder).load()
    assert same(loaded.shared, shared_state(1))
    assert list(loaded.passed_over) == [3, 2]
    assert "index.json has 2 bytes" in loaded.passed_over[3]
    assert "manifest.json is missing" in loaded.passed_over[2]
    assert len(caplog.records) == 2


def test_a_step_is_loaded_by_number_by_path_and_from_the_work_dir(tmp_path):
    folder = Folder(tmp_path / "checkpoints")
    save(folder, 1, 2)
    elsewhere = checkpointer(tmp_path / "elsewhere")
    assert checkpointer(folder).load(1).meta["step"] == 1
    assert elsewhere.load(tmp_path / "checkpoints/step-00000001").meta["step"] == 1
    assert elsewhere.load(str(tmp_path / "checkpoints")).meta["step"] == 2
    assert elsewhere.load(str(tmp_path)).meta["step"] == 2
    assert elsewhere.load(Folder(tmp_path)).meta["step"] == 2


def test_a_checkpoint_that_was_copied_under_another_name_loads_but_not_under_a_wrong_step(tmp_path):
    save(Folder(tmp_path), 1)
    (tmp_path / "step-00000001").rename(tmp_path / "best")
    assert checkpointer(tmp_path).load(tmp_path / "best").meta["step"] == 1
    (tmp_path / "best").rename(tmp_path / "step-00000007")
    with pytest.raises(CheckpointCorruptedError, match="step-00000007 holds step 1"):
        checkpointer(tmp_path).load()


def test_a_missing_step_names_the_nearest(folder):
    save(folder, 1, 10, 20, 30, 40, 50)
    for which in (21, folder.child("step-00000021")):
        with pytest.raises(CheckpointNotFoundError, match=r"steps there: 1, 10, 20, 30, 40$"):
            checkpointer(folder).load(which)


def test_a_named_checkpoint_that_is_damaged_is_not_replaced_by_another(folder):
    save(folder, 1, 2)
    folder.child("step-00000002").remove("index.json")
    with pytest.raises(CheckpointCorruptedError, match=r"index.json is missing; steps there: 1, 2"):
        checkpointer(folder).load(2)


def test_a_later_format_is_an_error_and_not_a_reason_to_go_back(folder, monkeypatch):
    save(folder, 1)
    monkeypatch.setattr(layout, "FORMAT", 3)
    save(folder, 2)
    monkeypatch.setattr(layout, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="format 3, and this version of stratrun reads 2"):
        checkpointer(folder).load()


def test_a_store_that_does_not_answer_is_an_error_and_not_a_reason_to_go_back(folder, monkeypatch):
    save(folder, 1, 2)

    def refuse(*args, **kwargs):
        raise PermissionError("no access to state.json")

    monkeypatch.setattr(Folder, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"reading .*step-00000002 failed: PermissionError: no access"):
        checkpointer(folder).load()


def test_training_anew_is_refused_where_checkpoints_would_be_in_the_way(folder):
    checkpointer(folder).claim()
    save(folder, 10, 20)
    with pytest.raises(CheckpointError, match=r"steps after the start: 10, 20; resume=True"):
        checkpointer(folder).claim()
    with pytest.raises(CheckpointError, match=r"steps after step 10: 20"):
        checkpointer(folder).claim(after=10)
    checkpointer(folder).claim(after=20)


def test_retention_keeps_the_newest_and_the_protected(folder):
    ours = checkpointer(folder)
    for step in (1, 2, 3, 4, 5):
        ours.save(step, shared_state(step))
    ours.apply_retention(2, protect={1, 99})
    assert steps_in(folder) == [1, 4, 5]
    ours.apply_retention(None)
    assert steps_in(folder) == [1, 4, 5]
    assert folder.names() == [layout.name_of(step) for step in (1, 4, 5)]


def test_retention_touches_only_its_own_run_until_it_is_resumed(folder):
    save(folder, 1, 2, run_id="theirs")
    save(folder, 3, run_id="ours")
    folder.child("step-00000009").write_bytes("notes.txt", b"the user's own")
    ours = checkpointer(folder, "ours")
    ours.apply_retention(1)
    assert steps_in(folder) == [1, 2, 3, 9]
    theirs = checkpointer(folder, "new")
    assert theirs.load(2).meta["step"] == 2
    theirs.apply_retention(1)
    assert steps_in(folder) == [2, 3, 9]


def test_resuming_from_elsewhere_never_removes_the_source(tmp_path):
    save(Folder(tmp_path / "source"), 1, 2, run_id="source")
    ours = checkpointer(tmp_path / "new", "new")
    ours.load(tmp_path / "source")
    for step in (3, 4):
        ours.save(step, shared_state(step))
        ours.apply_retention(1)
    assert ours.run_id == "new"
    assert steps_in(Folder(tmp_path / "source")) == [1, 2]
    assert steps_in(Folder(tmp_path / "new")) == [4]


def test_an_old_one_that_cannot_be_removed_does_not_stop_the_run(folder, monkeypatch, caplog):
    ours = checkpointer(folder)
    for step in (1, 2):
        ours.save(step, shared_state(step))
    monkeypatch.setattr(Folder, "remove", _denied)
    monkeypatch.setattr(Folder, "rename", _denied)
    ours.apply_retention(1)
    assert "was not removed: no permission" in caplog.text
    assert checkpointer(folder).load().meta["step"] == 2


def _denied(*args):
    raise PermissionError("no permission")


@pytest.mark.parametrize(
    ("keep_last", "protect", "gone"),
    [(None, (), []), (1, (), [1, 2, 3]), (2, {1}, [2]), (9, (), []), (0, (), [1, 2, 3])],
)
def test_the_newest_is_never_superfluous(keep_last, protect, gone):
    assert superfluous([3, 1, 4, 2], keep_last, protect) == gone


@pytest.mark.parametrize("point", ["shard-00000", "index.json", "state.json", "manifest.json", "COMMITTED"])
def test_a_full_disk_leaves_the_older_one_and_nothing_else(folder, point):
    save(folder, 1)
    message = rf"saving step 2 to .* failed: \w*Error: (?=.*{point}).*No space left"
    with full_disk(point), pytest.raises(CheckpointError, match=message):
        save(folder, 2)
    assert folder.names() == ["step-00000001"]
    save(folder, 2)
    assert checkpointer(folder).load().meta["step"] == 2


def test_a_read_only_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"saving step 1 to .* failed"):
        save(Folder(tmp_path / "file" / "checkpoints"), 1)


def test_state_that_cannot_be_saved_is_named_and_nothing_is_left(folder):
    with pytest.raises(
        CheckpointError, match=r"saving step 1 .* failed: the state at hooks\.Ema is a .*object"
    ):
        checkpointer(folder).save(1, {"hooks": {"Ema": object()}})
    assert folder.names() == []


def test_meta_holds_no_tensors_and_shared_state_keeps_off_the_names_of_ranks(folder):
    with pytest.raises(CheckpointError, match="'mean' is a tensor"):
        checkpointer(folder).save(1, {}, meta={"mean": torch.ones(1)})
    with pytest.raises(CheckpointError, match="may be called 'rank-00000'"):
        checkpointer(folder).save(1, {"rank-00000": torch.ones(1)})


@pytest.mark.parametrize("run_id", ["", "a/b", "a.b", "x" * 65, "../x"])
def test_a_run_id_that_is_no_plain_word_is_refused(run_id, tmp_path):
    with pytest.raises(ConfigError, match="run_id="):
        Checkpointer(Folder(tmp_path), Collectives(ProcessEnv()), run_id=run_id)


def test_a_part_is_read_without_the_rest(folder, monkeypatch):
    save(folder, 1)
    stored = StoredCheckpoint(folder.child("step-00000001"))
    assert same(stored.read_part("model"), shared_state(1)["model"])
    assert stored.read_part("train")["iter"] == 1
    with pytest.raises(CheckpointError, match="has no 'weights'; it holds model, optimizers, train"):
        stored.read_part("weights")


def test_too_little_memory_to_load_is_no_damage(folder, monkeypatch):
    save(folder, 1, 2)
    empty = torch.empty

    def refuse(size, *args, **kwargs):
        if size == torch.Size((5, 7)):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(size, *args, **kwargs)

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(CheckpointError, match=r"there is no memory for .*, of shape \[5, 7\]") as caught:
        checkpointer(folder).load()
    assert not isinstance(caught.value, CheckpointCorruptedError)
