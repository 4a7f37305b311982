"""Checkpoints whose digests all fit, written by someone who means harm."""

import json
import os
import re

import pytest

from stratrun.checkpoint import StoredCheckpoint, layout
from stratrun.errors import CheckpointCorruptedError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, shared_state


def shard_of(manifest):
    return manifest["files"]["shard-00000-of-00001.safetensors"]


@pytest.fixture
def folder(tmp_path):
    checkpointer(tmp_path).save(1, shared_state(1))
    return Folder(tmp_path / "step-00000001")


NAMES = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "C:\\x",
    "s3://other/shard-00000-of-00001.safetensors",
    "shard-00000-of-00001.safetensors\0",
    "shard-00000-of-00001.safetensors\n",
    "x" * 300,
    f"shard-00000-of-00001.run.{'x' * 300}.safetensors",
    "../shard-00000-of-00001.safetensors",
    "x.pt",
    "",
    "STATE.JSON",
    "manifest.json",
]
FORGERIES = (
    [
        (f"names {re.escape(repr(name[:100]))}, which", lambda m, name=name: m["files"].update({name: {}}))
        for name in NAMES
    ]
    + [
        (
            "twice, but for the case",
            lambda m: m["files"].update(
                {f"shard-00000-of-00001.{run}.x.safetensors": shard_of(m) for run in ("run", "RUN")}
            ),
        ),
        ("it has no size and sha256", lambda m: m["files"].update({"state.json": shard_of(m)})),
        ("it has no size and sha256_of_", lambda m: shard_of(m).update(sha256="0")),
        ("is incomplete", lambda m: m["files"].pop("state.json")),
        ("is incomplete", lambda m: m.update(step="1")),
        ("is not one", lambda m: m.update(loader="os.system")),
        ("is incomplete", lambda m: m["files"]["state.json"].update(size="1")),
        ("is of no run: step -1", lambda m: m.update(step=-1)),
        ("world_size 0", lambda m: m.update(world_size=0)),
    ]
    + [
        ("is of no run: .*run_id ", lambda m, run_id=run_id: m.update(run_id=run_id))
        for run_id in ("", "../../evil", "a\nb", "run\n", "a.b", "x" * 65, "\u0661")
    ]
)


@pytest.mark.parametrize(("message", "forge"), FORGERIES)
def test_a_forged_manifest_is_refused_before_any_other_file_is_opened(message, forge, folder, monkeypatch):
    fields = json.loads(folder.read_bytes("manifest.json"))
    forge(fields)
    data = json.dumps(fields).encode()
    folder.write_bytes("manifest.json", data)
    folder.write_bytes("COMMITTED", layout.marker(data))
    opened, read = [], Folder.read_bytes
    monkeypatch.setattr(
        Folder, "read_bytes", lambda self, path, limit=None: (opened.append(path), read(self, path, limit))[1]
    )
    with pytest.raises(CheckpointCorruptedError, match=message):
        StoredCheckpoint(folder)
    assert opened == ["manifest.json", "COMMITTED"]


def test_a_name_that_occurs_twice_in_a_manifest_is_refused(folder):
    data = folder.read_bytes("manifest.json").replace(b'"state.json"', b'"index.json"')
    folder.write_bytes("manifest.json", data)
    folder.write_bytes("COMMITTED", layout.marker(data))
    with pytest.raises(CheckpointCorruptedError, match="a key occurs twice"):
        StoredCheckpoint(folder)


@pytest.mark.parametrize(
    "file", ["shard-00000-of-00001.safetensors", "state.json", "manifest.json", "COMMITTED"]
)
def test_a_link_in_the_place_of_a_file_is_refused_whatever_it_leads_to(file, folder, tmp_path):
    place = folder.local_path() / file
    place.rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", place)
    with pytest.raises(CheckpointCorruptedError, match=f"{file} is a link"):
        StoredCheckpoint(folder)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "file", ["shard-00000-of-00001.safetensors", "state.json", "manifest.json", "COMMITTED"]
)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(file, folder):
    place = folder.local_path() / file
    size = place.stat().st_size
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(CheckpointCorruptedError, match=rf"{file} (is no file|has 0 bytes, not {size})"):
        StoredCheckpoint(folder)
    # Nor by a save in its place.
    ours = checkpointer(folder.parent)
    ours.save(1, shared_state(1))
    ours.save(2, shared_state(2), keep_last=1)
    assert ours.load().meta["step"] == 2


def test_a_file_that_needs_more_memory_than_it_has_bytes_takes_none(folder, monkeypatch):
    index = json.loads(folder.read_bytes("index.json"))
    index["block"] = 1 << 62
    rewrite(folder, "index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointCorruptedError, match="a block of 4611686018427387904 bytes"):
        checkpointer(folder.parent).load(1)
    monkeypatch.setattr(layout, "JSON_LIMIT", 100)
    with pytest.raises(CheckpointCorruptedError, match="more than the 100 bytes"):
        checkpointer(folder.parent).load(1)


def of_slice(**fields):
    """Replace fields of a slice by what a function makes of the slice."""
    return lambda tensor: tensor["slices"][0].update(
        {name: make(tensor["slices"][0]) for name, make in fields.items()}
    )


INDEX_FORGERIES = {
    "beyond the file": of_slice(start=lambda s: s["start"] + 10**6, stop=lambda s: s["stop"] + 10**6),
    "another file": of_slice(file=lambda s: "../../x"),
    "no file": of_slice(file=lambda s: None),
    "a negative place": of_slice(start=lambda s: -s["stop"], stop=lambda s: 0),
    "a wrong shape": lambda t: t.update(shape=[10**9, 10**9]),
    "a wrong shape of a slice": of_slice(shape=lambda s: [10**9, 10**9]),
    "an endless empty shape": lambda t: (
        t.update(shape=[0, 10**30]),
        of_slice(shape=lambda s: [0, 10**30], stop=lambda s: s["start"], offsets=lambda s: [0, 0])(t),
    ),
    "an offset outside": of_slice(offsets=lambda s: [1]),
    "other dimensions": of_slice(offsets=lambda s: [0, 0], shape=lambda s: [1, *s["shape"]]),
    "too few checksums": of_slice(crc32=lambda s: []),
    "a checksum that is no number": of_slice(crc32=lambda s: ["x"]),
    "an unknown dtype": lambda t: t.update(dtype="PICKLE"),
    "a field too many": lambda t: t.update(loader="os.system"),
    "a field too many in a slice": of_slice(loader=lambda s: "os.system"),
    "no slices": lambda t: t.update(slices=[]),
    "the same slice twice": lambda t: t.update(slices=t["slices"] * 2),
    "overlapping places": of_slice(start=lambda s: 0, stop=lambda s: s["stop"] - s["start"]),
}


@pytest.mark.parametrize("forge", INDEX_FORGERIES.values(), ids=INDEX_FORGERIES)
def test_a_forged_index_is_refused(forge, folder):
    index = json.loads(folder.read_bytes("index.json"))
    forge(index["tensors"]["model/fc.bias"])
    rewrite(folder, "index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointCorruptedError, match=r"(index|manifest)\.json"):
        checkpointer(folder.parent).load(1)


@pytest.mark.parametrize(
    "data", [b"[]", b"{", b'{"shared":1,"shared":2}', b"[" * 100_000, b"\xff", b"9" * 10_000], ids=len
)
def test_a_state_that_is_no_object_is_refused(data, folder):
    rewrite(folder, "state.json", data)
    with pytest.raises(CheckpointCorruptedError):
        checkpointer(folder.parent).load(1)


def rewrite(folder, file, data):
    """Replace a file and make all digests above it fit, as an attacker would."""
    folder.write_bytes(file, data)
    fields = json.loads(folder.read_bytes("manifest.json"))
    digest = layout.digest_of(data)
    fields["files"][file] = digest.to_fields()
    manifest = json.dumps(fields).encode()
    folder.write_bytes("manifest.json", manifest)
    folder.write_bytes("COMMITTED", layout.marker(manifest))
