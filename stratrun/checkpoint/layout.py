"""What a checkpoint folder holds.

    step-00000012/
      shard-00000-of-00002.safetensors   tensors, one file for each rank that has any
      index.json                         which tensor lies where, with a checksum of each
      state.json                         everything that is not a tensor
      manifest.json                      every file above with its size and digest
      COMMITTED                          written last: the digest of the manifest

Each digest is itself covered by the next, up to the marker, whose bytes follow from the manifest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stratrun.checkpoint.shards import Digest
from stratrun.errors import CheckpointCorruptedError, CheckpointError

FORMAT = 1
INDEX = "index.json"
STATE = "state.json"
MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"
# More than any run writes, less than would fill a machine's memory.
MANIFEST_LIMIT = 64 << 20
JSON_LIMIT = 1 << 30

_STEP = re.compile(r"step-(\d{8,18})")
_FILE = re.compile(r"shard-\d{5,}-of-\d{5,}\.safetensors|index\.json|state\.json")


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and name_of(int(match[1])) == name else None


def shard_name(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Whose checkpoint it is, and what each file must turn out to be."""

    step: int
    run_id: str
    world_size: int
    files: Mapping[str, Digest]

    def to_bytes(self) -> bytes:
        fields = {**asdict(self), "format": FORMAT, "files": {n: asdict(d) for n, d in self.files.items()}}
        return json.dumps(fields, indent=1, sort_keys=True).encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read untrusted bytes.

        Raises:
            CheckpointCorruptedError: they are no manifest, or name a file that has no place here.
            CheckpointError: a later version of stratrun wrote them.
        """
        fields = parse_json(data, MANIFEST)
        try:
            version = fields.pop("format")
            if version != FORMAT:
                raise CheckpointError(
                    f"{MANIFEST} has format {version!r}; this version of stratrun reads {FORMAT}"
                )
            files = {name: Digest(**digest) for name, digest in fields.pop("files").items()}
            made = cls(files=files, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointCorruptedError(f"{MANIFEST} is not one: {error!r}") from error
        strange = [name for name in files if not _FILE.fullmatch(name)]
        if strange:
            raise CheckpointCorruptedError(f"{MANIFEST} names {strange[0][:100]!r}, which no checkpoint has")
        kinds = (type(made.step), type(made.run_id), type(made.world_size))
        sound = all(type(d.size) is int and type(d.sha256) is str for d in files.values())
        if kinds != (int, str, int) or not sound or not {INDEX, STATE} <= files.keys():
            raise CheckpointCorruptedError(f"{MANIFEST} is incomplete")
        return made


def marker(manifest: bytes) -> bytes:
    """The only content that the marker of this manifest can have."""
    return f"stratrun checkpoint {FORMAT}\nmanifest sha256 {hashlib.sha256(manifest).hexdigest()}\n".encode()


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


def to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_json(data: bytes, file: str) -> dict[str, Any]:
    """An object out of untrusted bytes.

    Raises:
        CheckpointCorruptedError: they hold something else.
    """
    try:
        value = json.loads(data, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptedError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointCorruptedError(f"{file} holds no object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made
