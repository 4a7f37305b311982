"""What a checkpoint folder holds.

    step-00000012/
      shard-00000-of-00002.safetensors   tensors, one file or several of each rank that has any
      index.json                         what part of which tensor lies where, with checksums of it
      state.json                         everything that is not a tensor
      manifest.json                      every file above with its size and digest
      COMMITTED                          written last: the digest of the manifest

Each digest is itself covered by the next, up to the marker, whose bytes follow from the manifest. That of
a shard is taken over its header and the checksums of its blocks, which the index has: so hashing costs no
more than the checksums, and any block can be verified without the rest of its file.

On stores without rename the names of shards also tell which attempt of which run wrote them: a writer that
was given up and comes late cannot touch those of another.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stratrun.errors import CheckpointCorruptedError, CheckpointError

FORMAT = 2
INDEX = "index.json"
STATE = "state.json"
MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"
OF_SHARDS = "sha256_of_header_and_block_crc32s"
# More than any run writes, less than would fill a machine's memory.
MANIFEST_LIMIT = 64 << 20
JSON_LIMIT = 1 << 30

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STEP = re.compile(r"step-(\d{8,18})")
# The attempt that wrote a shard is named by the run and a token, on stores without rename.
_ATTEMPT = rf"(?:\.(?P<run_id>{RUN_ID.pattern})\.(?P<token>[0-9a-zA-Z]{{1,32}}))?"
_SHARD = re.compile(rf"shard-\d{{5,9}}-of-\d{{5,9}}(?:-part-\d)?{_ATTEMPT}\.safetensors")


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must turn out to be."""

    size: int
    value: str
    method: str = "sha256"

    def to_fields(self) -> dict[str, Any]:
        return {"size": self.size, self.method: self.value}

    @classmethod
    def parse(cls, file: str, fields: Any) -> "Digest":
        """Read untrusted JSON.

        Raises:
            CheckpointCorruptedError: it is no digest of the kind that such a file has.
        """
        method = OF_SHARDS if is_shard(file) else "sha256"
        sound = isinstance(fields, dict) and fields.keys() == {"size", method}
        if not sound or type(fields["size"]) is not int or type(fields[method]) is not str:
            raise CheckpointCorruptedError(f"{MANIFEST} is incomplete: it has no size and {method} of {file}")
        return cls(fields["size"], fields[method], method)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and name_of(int(match[1])) == name else None


def shard_name(rank: int, world_size: int, part: int = 0, attempt: str = "") -> str:
    """The file of one rank; `part` counts from 1 where it has several."""
    several = f"-part-{part}" if part else ""
    return f"shard-{rank:05d}-of-{world_size:05d}{several}{attempt and '.'}{attempt}.safetensors"


def is_shard(file: str) -> bool:
    return _SHARD.fullmatch(file) is not None


def run_of_shard(file: str) -> str | None:
    """The run that wrote a shard, if its name tells."""
    match = _SHARD.fullmatch(file)
    return match["run_id"] if match else None


def attempt_of_shard(file: str) -> str | None:
    """The attempt that wrote a shard, if its name tells: `attempt` of `shard_name`."""
    match = _SHARD.fullmatch(file)
    return f"{match['run_id']}.{match['token']}" if match and match["run_id"] else None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Whose checkpoint it is, and what each file must turn out to be."""

    step: int
    run_id: str
    world_size: int
    files: Mapping[str, Digest]

    def to_bytes(self) -> bytes:
        fields = {
            "format": FORMAT,
            "step": self.step,
            "run_id": self.run_id,
            "world_size": self.world_size,
            "files": {name: digest.to_fields() for name, digest in self.files.items()},
        }
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
            files = dict(fields.pop("files"))
            made = cls(files=files, **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointCorruptedError(f"{MANIFEST} is not one: {error!r}") from error
        _check_names(files)
        kinds = (type(made.step), type(made.run_id), type(made.world_size))
        if kinds != (int, str, int) or not {INDEX, STATE} <= files.keys():
            raise CheckpointCorruptedError(f"{MANIFEST} is incomplete")
        if made.step < 0 or made.world_size < 1 or not RUN_ID.fullmatch(made.run_id):
            raise CheckpointCorruptedError(
                f"{MANIFEST} is of no run: step {made.step}, run_id {made.run_id[:100]!r} and "
                f"world_size {made.world_size}"
            )
        files.update({name: Digest.parse(name, fields) for name, fields in files.items()})
        return made


def _check_names(files: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in files:
        if not is_shard(name) and name not in (INDEX, STATE):
            raise CheckpointCorruptedError(f"{MANIFEST} names {name[:100]!r}, which no checkpoint has")
        if name.casefold() in seen:
            raise CheckpointCorruptedError(f"{MANIFEST} names {name!r} twice, but for the case of letters")
        seen.add(name.casefold())


def marker(manifest: bytes) -> bytes:
    """The only content that the marker of this manifest can have."""
    return f"stratrun checkpoint {FORMAT}\nmanifest sha256 {hashlib.sha256(manifest).hexdigest()}\n".encode()


def refuse_other_format(mark: bytes, manifest: bytes) -> None:
    """
    Raises:
        CheckpointError: both are as another version of stratrun writes them.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    match = re.fullmatch(rf"stratrun checkpoint (\d{{1,4}})\nmanifest sha256 {digest}\n".encode(), mark)
    if match and parse_json(manifest, MANIFEST).get("format") == int(match[1]):
        raise CheckpointError(
            f"the checkpoint has format {int(match[1])}, and this version of stratrun reads {FORMAT}; "
            "load it with the version that wrote it"
        )


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
