"""Checkpoints whose digests all fit, written by someone who means harm."""

import json

import pytest

from stratrun.checkpoint import StoredCheckpoint, layout
from stratrun.errors import CheckpointCorruptedError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, shared_state


@pytest.fixture
def folder(tmp_path):
    checkpointer(tmp_path).save(1, shared_state(1))
    return Folder(tmp_path / "step-00000001")


FORGERIES = [
    ("names '../x', which", lambda m: m["files"].update({"../x": m["files"]["state.json"]})),
    ("names '/etc/passwd', which", lambda m: m["files"].update({"/etc/passwd": m["files"]["state.json"]})),
    ("names 'x.pt', which", lambda m: m["files"].update({"x.pt": m["files"]["state.json"]})),
    ("is incomplete", lambda m: m["files"].pop("state.json")),
    ("is incomplete", lambda m: m.update(step="1")),
    ("is not one", lambda m: m.update(loader="os.system")),
    ("is incomplete", lambda m: m["files"]["state.json"].update(size="1")),
]


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


INDEX_FORGERIES = {
    "beyond the file": lambda s: s.update(start=s["start"] + 10**6, stop=s["stop"] + 10**6),
    "another file": lambda s: s.update(file="../../x"),
    "a negative place": lambda s: s.update(start=-s["stop"], stop=0),
    "a wrong shape": lambda s: s.update(shape=[10**9, 10**9]),
    "an endless empty shape": lambda s: s.update(shape=[0, 10**30], stop=s["start"]),
    "an unknown dtype": lambda s: s.update(dtype="PICKLE"),
    "a field too many": lambda s: s.update(loader="os.system"),
    "overlapping places": lambda s: s.update(start=0, stop=s["stop"] - s["start"]),
}


@pytest.mark.parametrize("forge", INDEX_FORGERIES.values(), ids=INDEX_FORGERIES)
def test_a_forged_index_is_refused(forge, folder):
    index = json.loads(folder.read_bytes("index.json"))
    forge(index["tensors"]["model/fc.bias"])
    rewrite(folder, "index.json", json.dumps(index).encode())
    with pytest.raises(CheckpointCorruptedError):
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
    fields["files"][file] = {"size": digest.size, "sha256": digest.sha256}
    manifest = json.dumps(fields).encode()
    folder.write_bytes("manifest.json", manifest)
    folder.write_bytes("COMMITTED", layout.marker(manifest))
