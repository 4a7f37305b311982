"""What lies in the files of a checkpoint, and what is read of them."""

import hashlib
import json
import struct
import threading
import uuid
import zlib

import pytest
import safetensors.torch
import torch

from stratrun.checkpoint import Attempt, SnapshotPlanner, index, layout, shards
from stratrun.checkpoint.remains import leftovers
from stratrun.errors import CheckpointCorruptedError, CheckpointError, StorageError
from stratrun.storage import Folder
from tests.checkpoints import odd_tensors, same, save_tensors

BLOCK = 4096


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return Folder(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def small_blocks(monkeypatch):
    """Little is enough to fill several blocks, buffers and files."""
    monkeypatch.setattr(index, "BLOCK", BLOCK)
    monkeypatch.setattr(shards, "_BUFFER", 3 * shards.PAGE)
    monkeypatch.setattr(shards, "_CHUNK", 1000)
    monkeypatch.setattr(shards, "_PER_FILE", 40_000)


def numbers(**sizes):
    random = torch.Generator().manual_seed(1)
    return {name: torch.randn(size, generator=random) for name, size in sizes.items()}


def shard_files(folder):
    return [name for name in folder.names() if layout.is_shard(name)]


def test_tensors_of_every_odd_kind_come_back(root):
    live = odd_tensors()
    stored = save_tensors(root, live)
    back = stored.read_tensors(live)
    for name, tensor in live.items():
        assert same(back[name], tensor.detach().resolve_conj().resolve_neg().contiguous()), name
    assert stored.read().shared.keys() == live.keys()


def test_several_blocks_buffers_and_files_hold_the_same(root, small_blocks):
    live = numbers(a=5000, b=3, c=12_000, d=1024, e=9000, f=1, g=2048) | odd_tensors()
    stored = save_tensors(root, live)
    files = shard_files(stored.folder)
    assert len(files) == 3
    assert all("-part-" in file for file in files)
    assert all(same(back, live[name]) for name, back in stored.read_tensors(numbers(a=1, c=1, g=1)).items())
    found = {}
    for file in files:
        found |= safetensors.torch.load(stored.folder.read_bytes(file))
    assert all(torch.equal(found[name], live[name]) for name in "abcdefg")
    assert stored.verify().tensors == len(live)


def test_no_more_files_are_written_than_pay(tmp_path, small_blocks):
    stored = save_tensors(Folder(tmp_path), numbers(**{f"t{i}": 20_000 for i in range(9)}))
    sizes = [size for file, size in stored.folder.sizes().items() if layout.is_shard(file)]
    assert len(sizes) == 4
    assert max(sizes) <= 3 * 80_000 + 4096


def test_the_digest_of_a_file_is_over_its_header_and_the_checksums_of_its_blocks(tmp_path, small_blocks):
    live = numbers(a=3000, b=10)
    stored = save_tensors(Folder(tmp_path), live)
    (file,) = shard_files(stored.folder)
    data = stored.folder.read_bytes(file)
    start = 8 + struct.unpack("<Q", data[:8])[0]
    digest = hashlib.sha256(data[:start])
    for size in (12_000, 40):
        blocks = [data[start + at : start + min(at + BLOCK, size)] for at in range(0, size, BLOCK)]
        digest.update(b"".join(struct.pack("<I", zlib.crc32(block)) for block in blocks))
        start += size
    manifest = json.loads(stored.folder.read_bytes("manifest.json"))
    assert manifest["files"][file] == {
        "size": len(data),
        "sha256_of_header_and_block_crc32s": digest.hexdigest(),
    }


def test_a_flaw_in_one_block_is_named_by_its_place_and_harms_no_other(root, small_blocks):
    live = numbers(a=3000, b=10)
    stored = save_tensors(root, live)
    (file,) = shard_files(stored.folder)
    place = stored.index.tensors["a"].slices[0]
    data = bytearray(stored.folder.read_bytes(file))
    data[place.start + BLOCK + 5] ^= 1
    stored.folder.write_bytes(file, bytes(data))
    where = f"bytes {place.start + BLOCK} to {place.start + 2 * BLOCK}, which are of .a., does not match"
    with pytest.raises(CheckpointCorruptedError, match=where):
        stored.read_tensors(["a"])
    with pytest.raises(CheckpointCorruptedError, match=where):
        stored.verify()
    assert torch.equal(stored.read_tensors(["b"])["b"], live["b"])


def test_a_part_is_read_without_the_rest(root, small_blocks, monkeypatch):
    live = numbers(big=9000, little=10, other=5000)
    stored = save_tensors(root, live)
    fetched = []
    read = Folder.read_into
    monkeypatch.setattr(
        Folder, "read_into", lambda *call: (fetched.append((call[1], len(call[3]))), read(*call))[1]
    )
    assert torch.equal(stored.read_part("little"), live["little"])
    headers = stored.index.in_files()["".join({file for file, _ in fetched})][0].start
    assert sum(count for _, count in fetched) == headers + 40


def test_rows_of_a_tensor_are_read_by_the_blocks_that_hold_them(root, small_blocks, monkeypatch):
    whole = torch.arange(100 * 256, dtype=torch.float32).view(100, 256)
    stored = save_tensors(root, {"w": whole})
    fetched = []
    read = Folder.read_into
    monkeypatch.setattr(Folder, "read_into", lambda *c: (fetched.append(len(c[3])), read(*c))[1])
    for rows, columns, blocks in (((8, 4), (0, 256), 1), ((9, 5), (3, 50), 3), ((0, 100), (255, 1), 25)):
        into = torch.empty(rows[1], columns[1])
        read_box(stored, "w", (rows[0], columns[0]), into)
        assert torch.equal(into, whole[rows[0] :, columns[0] :][: rows[1], : columns[1]])
        assert sum(fetched) <= blocks * BLOCK + 256
        fetched.clear()


def read_box(stored, name, offsets, into):
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

    class Planner:
        def resolve_tensor(self, item):
            return into

        def commit_tensor(self, item, tensor):
            assert tensor is not None

    here = MetadataIndex(name, (0, 0))
    item = ReadItem(LoadItemType.TENSOR, here, (0, 0), here, torch.Size(offsets), into.shape)
    stored._shards.read_data(LoadPlan([item]), Planner()).wait()


def test_an_error_in_any_of_the_writing_threads_is_raised(tmp_path, small_blocks, monkeypatch):
    written = Folder.write_blocks
    live = numbers(a=20_000, b=20_000, c=20_000)
    for failing in ("part-1", "part-2", "part-3"):

        def write(self, path, blocks, failing=failing):
            if failing in path:
                assert threading.current_thread() is not threading.main_thread()
                raise OSError(28, "No space left on device", path)
            written(self, path, blocks)

        monkeypatch.setattr(Folder, "write_blocks", write)
        with pytest.raises(OSError, match=failing):
            save_tensors(Folder(tmp_path / failing), live)
        assert not Folder(tmp_path / failing).exists("step-00000001")


def test_an_error_while_a_buffer_is_filled_beside_writing_is_raised(tmp_path, small_blocks):
    live = numbers(a=9000, b=9000)

    class Unreadable(SnapshotPlanner):
        def lookup_object(self, index):
            if index.fqn == "b":
                raise ValueError("b is gone")
            return super().lookup_object(index)

    with pytest.raises((ValueError, StorageError), match="b is gone"):
        save_tensors(Folder(tmp_path), live, planner=Unreadable(live))
    assert not Folder(tmp_path).exists("step-00000001")


def test_what_was_planned_and_is_not_reported_as_written_is_no_checkpoint(tmp_path):
    live = numbers(a=10, b=10)
    attempt = Attempt(Folder(tmp_path), 1, "run", "t0ken")
    writer, planner = attempt.writer(), SnapshotPlanner(live)
    (plan,), metadata = planner.create_global_plan([planner.create_local_plan()])
    results = writer.write_data(plan, planner).wait()
    with pytest.raises(CheckpointError, match="'b' was not written whole: 0 of 1 parts"):
        attempt.commit(metadata, [[r for r in results if r.index.fqn == "a"]])
    del metadata.state_dict_metadata["a"]
    with pytest.raises(CheckpointError, match="'a' was written, and planned by no rank"):
        attempt.commit(metadata, [results])
    assert not Folder(tmp_path).exists("step-00000001")


def test_a_copy_that_is_not_what_was_planned_is_refused(tmp_path):
    live = numbers(a=10)
    planner = SnapshotPlanner(live, {"a": live["a"][:5]})
    with pytest.raises(CheckpointError, match=r"'a' was planned as .*\[10\] and is .*\[5\]; did it change"):
        save_tensors(Folder(tmp_path), live, planner=planner)


def test_a_file_that_is_written_again_has_the_same_checksums(root, small_blocks, monkeypatch):
    written = Folder.write_blocks

    def twice(self, path, blocks):
        for _ in zip(blocks(), range(2), strict=False):
            pass  # broken off, as by a store that hangs up
        written(self, path, blocks)

    monkeypatch.setattr(Folder, "write_blocks", twice)
    live = numbers(a=9000, b=7)
    stored = save_tensors(root, live)
    assert torch.equal(stored.read_tensors(["a"])["a"], live["a"])
    stored.verify()


def test_a_template_is_filled_in_place_and_another_shape_is_refused(tmp_path):
    live = numbers(a=10, b=10)
    stored = save_tensors(Folder(tmp_path), live)
    into = torch.zeros(20)[::2]
    loaded = stored.read(template={"a": into})
    assert loaded.shared["a"] is into
    assert torch.equal(into, live["a"])
    assert torch.equal(loaded.shared["b"], live["b"])
    with pytest.raises(CheckpointError, match=r"'a' is of shape \[10\] in .*, and \[3\] is to be filled"):
        stored.read(template={"a": torch.zeros(3)})


def test_what_is_in_a_checkpoint_is_told_without_reading_tensors(tmp_path, monkeypatch):
    stored = save_tensors(Folder(tmp_path), {"a": torch.ones(2, 3).bfloat16(), "b": torch.ones(())})
    monkeypatch.setattr(Folder, "read_into", None)
    assert stored.describe() == {
        "tensors": {
            "a": {"dtype": "bfloat16", "shape": [2, 3], "bytes": 12},
            "b": {"dtype": "float32", "shape": [], "bytes": 4},
        },
        "entries": ["a", "b"],
        "meta": {"step": 1, "run_id": "run", "world_size": 1},
    }


def test_dead_attempts_of_this_run_are_found_on_stores_without_rename_and_no_others():
    root = Folder(f"memory://{uuid.uuid4().hex}")
    for step, run_ids in ((1, ["ours"]), (2, ["theirs"]), (3, ["ours", "theirs"]), (4, [])):
        for run_id in run_ids:
            shard = layout.shard_name(0, 1, attempt=f"{run_id}.abcd")
            root.write_bytes(f"{layout.name_of(step)}/{shard}", b"x")
        root.write_bytes(f"{layout.name_of(step)}/index.json", b"{}")
    save_tensors(root, numbers(a=3), step=5, run_id="ours")
    save_tensors(root, numbers(a=3), step=6, run_id="ours")
    root.child("step-00000006").remove("COMMITTED")
    assert leftovers(root, "ours") == ["step-00000001", "step-00000006"]


def test_a_second_save_writes_out_of_the_memory_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_BUFFER", 8192)
    monkeypatch.setattr(shards, "_spare", [])
    made = []
    mapped = shards.mmap.mmap
    monkeypatch.setattr(shards.mmap, "mmap", lambda *args: made.append(args) or mapped(*args))
    folder = Folder(tmp_path)
    for step in (1, 2, 3):
        stored = save_tensors(folder, {"x": torch.arange(9000.0)}, step)
        stored.verify()
    assert len(made) == 2
