"""Looking at checkpoints from the command line: what is listed, shown and found damaged."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from stratrun.cli.main import run
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, own_state, same, shared_state
from tests.stores import Store

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A work dir, on disk and in a store without folders."""
    if request.param == "local":
        return f"{tmp_path}/digits"
    return f"memory://{tmp_path.name}/digits"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Do `stratrun ckpt ...`; gives the exit code and what it said."""

    def do(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["ckpt", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return do


def save(place: str, *steps: int, run_id: str = "run", best: Any = None) -> None:
    saver = checkpointer(Folder(place).child("checkpoints"), run_id)
    for step in steps:
        meta = {
            "epoch": step // 10,
            "iter": step,
            "metrics": {"accuracy": step / 100, "loss": float("nan")},
            "reasons": ["accelerator=cpu: 'auto'"],
            "config": "optimizer:\n  lr: 0.1\n",
            "torch": "2.13.0",
        }
        saver.save(
            step, shared_state(step), own_state(step), meta=meta if best is None else {**meta, "best": best}
        )


def spoil(place: str, step: int, file: str = "shard-*") -> None:
    """Turn a bit in the middle of a file."""
    folder = Folder(place).child(f"checkpoints/step-{step:08d}")
    name = next(name for name in folder.names() if Path(name).match(file))
    data = bytearray(folder.read_bytes(name))
    data[-9] ^= 1
    folder.remove(name)
    folder.write_bytes(name, bytes(data))


def row(table: str, start: str) -> str:
    return next(line for line in table.splitlines() if line.split()[:1] == [start])


def test_a_listing_is_in_the_order_of_steps_with_what_each_is(place: str, command: Command) -> None:
    save(place, 9, 10, 100, best={"accuracy": [[0.5, 50], [0.1, 10]]})
    Folder(place).child("checkpoints").remove("step-00000009/COMMITTED")
    code, out, _ = command("ls", place)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith("checkpoints, run run")
    assert [line.split()[0] for line in lines[1:]] == ["step", "9", "10", "100"]
    assert row(out, "9").endswith("  unfinished")
    assert row(out, "10").endswith("accuracy=0.1 loss=nan  best")
    assert row(out, "100").endswith("accuracy=1 loss=nan    last")
    assert len({line.index("accuracy") for line in lines[3:]}) == 1


@pytest.mark.parametrize("way", ["", "/", "/checkpoints", "/checkpoints/"])
def test_a_work_dir_and_its_folder_of_checkpoints_list_the_same(
    place: str, command: Command, way: str
) -> None:
    save(place, 1, 2)
    assert json.loads(command("ls", f"{place}{way}", "--json")[1])["checkpoints"][1]["step"] == 2


def test_a_name_or_a_step_lists_that_one(place: str, command: Command) -> None:
    save(place, 1, 2, 3, best={"accuracy": [[0.5, 2]]})

    def steps(path: str) -> list[int]:
        rows = json.loads(command("ls", path, "--json")[1])["checkpoints"]
        return [one["step"] for one in rows]

    assert steps(f"{place}/best") == [2]
    assert steps(f"{place}/checkpoints/best:accuracy") == [2]
    assert steps(f"{place}/last") == [3]
    assert steps(f"{place}/checkpoints/step-00000001") == [1]


def test_several_metrics_have_a_best_each(place: str, command: Command) -> None:
    save(place, 1, 2, best={"accuracy": [[0.5, 1]], "loss": [[0.1, 2]]})
    rows = json.loads(command("ls", place, "--json")[1])["checkpoints"]
    assert [one["marks"] for one in rows] == [["best:accuracy"], ["last", "best:loss"]]


def test_json_has_null_for_what_is_no_number(place: str, command: Command) -> None:
    save(place, 1)
    one = json.loads(command("ls", place, "--json")[1], parse_constant=pytest.fail)["checkpoints"][0]
    assert one["metrics"] == {"accuracy": 0.01, "loss": None}
    assert (one["epoch"], one["iter"], one["ranks"], one["run_id"]) == (0, 1, 1, "run")


def test_what_was_staged_is_shown_as_such(tmp_path: Path, command: Command) -> None:
    save(str(tmp_path), 1)
    staged = tmp_path / "checkpoints" / ".staging-step-00000002.run.0badcafe"
    staged.mkdir()
    (staged / "shard-00000-of-00001.safetensors").write_bytes(b"x" * 1500)
    (tmp_path / "checkpoints" / "notes").mkdir()
    (staged.parent / ".trash-step-00000000.run.00c0ffee").mkdir()
    rows = json.loads(command("ls", str(tmp_path), "--json")[1])["checkpoints"]
    assert [(one["step"], one["state"]) for one in rows] == [
        (0, "discarded"),
        (1, "committed"),
        (2, "staged"),
    ]
    assert rows[2]["size"] == 1500


def test_only_unfinished_ones_are_listed_too(place: str, command: Command) -> None:
    save(place, 5)
    Folder(place).remove("checkpoints/step-00000005/COMMITTED")
    code, out, _ = command("ls", place)
    assert code == 0 and "unfinished" in out


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "COMMITTED"])
def test_a_listing_sees_damage_of_what_it_reads(place: str, command: Command, file: str) -> None:
    save(place, 1, 2)
    spoil(place, 2, file)
    out = command("ls", place)[1]
    assert "  damaged: " in row(out, "2")
    assert row(out, "1").endswith("last")


def test_a_listing_sees_damage_of_tensors_on_request(place: str, command: Command) -> None:
    save(place, 1, 2)
    spoil(place, 2)
    assert row(command("ls", place)[1], "2").endswith("last")
    verified = command("ls", place, "--verify")[1]
    assert "damaged: shard-" in row(verified, "2")
    assert row(verified, "1").endswith("last")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("digit", "digit does not exist; did you mean 'digits'?"),
        ("", "there are runs in it: digits"),
        ("nowhere/digits", "nor does the folder that it should be in"),
        ("digits/checkpoints/step-00000007", "does not exist; there are step-00000001, step-00000002"),
        ("digits/best", "has no 'best', as no metric was watched"),
        ("digits/lsat", "lsat does not exist"),
    ],
)
def test_a_wrong_path_is_a_mistake_told_with_what_is_near(
    tmp_path: Path, command: Command, path: str, told: str
) -> None:
    save(f"{tmp_path}/digits", 1, 2)
    for verb in ("ls", "show", "verify"):
        code, _, errors = command(verb, f"{tmp_path}/{path}")
        assert code == 2
        assert told in errors
        assert errors.startswith("stratrun: error: ") and errors.count("\n") == 1


def test_an_unfinished_one_cannot_be_shown_verified_or_exported(place: str, command: Command) -> None:
    save(place, 1, 2)
    Folder(place).remove("checkpoints/step-00000002/COMMITTED")
    for verb in ("show", "verify", "export"):
        code, _, errors = command(verb, f"{place}/checkpoints/step-00000002")
        assert code == 2
        assert "step-00000002 is unfinished; there are step-00000001" in errors


def test_a_file_system_that_refuses_is_a_failure_without_traceback(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(str(tmp_path), 1)

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "step-00000001")

    monkeypatch.setattr(Folder, "sizes", refuse)
    code, _, errors = command("ls", str(tmp_path))
    assert code == 1
    assert "Permission denied" in errors and errors.count("\n") == 1


def test_verifying_says_of_each_whether_it_is_intact_and_which_is_the_newest(
    place: str, command: Command
) -> None:
    save(place, 1, 2, 3)
    assert command("verify", place)[0] == 0
    spoil(place, 3)
    Folder(place).remove("checkpoints/step-00000001/COMMITTED")
    code, out, _ = command("verify", place)
    first, second, third, newest = out.splitlines()
    assert code == 1
    assert first.split() == ["step-00000001", "unfinished"]
    assert second.split()[:2] == ["step-00000002", "intact"] and second.endswith(" GB/s")
    assert third.split()[:2] == ["step-00000003", "damaged"]
    assert "shard-00000-of-00001" in third and "which are of 'model/fc.bias', does not match" in third
    assert newest.startswith("newest intact: ") and newest.endswith("/step-00000002")


def test_verifying_one_checkpoint_is_about_that_one(place: str, command: Command) -> None:
    save(place, 1, 2)
    spoil(place, 1)
    assert command("verify", f"{place}/last")[0] == 0
    code, out, _ = command("verify", f"{place}/checkpoints/step-00000001", "--json")
    told = json.loads(out)
    assert code == 1
    assert [one["state"] for one in told["checkpoints"]] == ["damaged"]
    assert told["newest_intact"] is None


def test_where_all_are_damaged_none_is_intact(place: str, command: Command) -> None:
    save(place, 1, 2)
    spoil(place, 1)
    spoil(place, 2, "index.json")
    code, out, _ = command("verify", place)
    assert code == 1
    assert out.splitlines()[-1] == "none is intact"


def test_showing_tells_the_run_its_parts_and_its_tensors(place: str, command: Command) -> None:
    save(place, 7, 12, best={"accuracy": [[0.07, 7]]})
    code, out, _ = command("show", place)
    assert code == 0
    assert out.splitlines()[0].endswith("/step-00000012")
    for said in (
        *("step 12 (epoch 1, iter 12)", "by 1 rank", "torch 2.13.0", "accuracy=0.12 loss=nan"),
        *("accuracy: 0.07 at step 7", "accelerator=cpu: 'auto'", "lr: 0.1"),
    ):
        assert said in out
    assert row(out, "model").split() == ["model", "2", "150", "B"]
    assert row(out, "total").split() == ["total", "4", "362", "B"]
    assert row(out, "model/fc.bias").split()[2:] == ["5", "10", "B"]


def test_tensors_are_chosen_by_a_pattern(place: str, command: Command) -> None:
    save(place, 1)

    def names(pattern: str) -> list[str]:
        told = json.loads(command("show", place, "--tensors", pattern, "--json")[1])
        return sorted(one["name"] for one in told["tensors"])

    assert names("bias") == names("model/*s") == ["model/fc.bias"]
    assert len(names("*")) == 4
    code, _, errors = command("show", place, "--tensors", "model/fc.bais")
    assert code == 2
    assert "did you mean 'model/fc.bias'?" in errors


def test_a_damaged_one_is_not_shown(place: str, command: Command) -> None:
    save(place, 1)
    spoil(place, 1, "state.json")
    code, _, errors = command("show", place)
    assert code == 1
    assert "state.json is damaged" in errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lss"], "ckpt has no command 'lss'; did you mean 'ls'?"),
        (["ls"], "required: PATH; see stratrun ckpt ls --help"),
        (["ls", "w", "--jsn"], "--jsn is no option; did you mean '--json'?"),
        (["ls", "w", "v"], "'v' is one word too many"),
        (["ls", "w", "--storage-option", "fast"], "--storage-option is given as KEY=VALUE"),
        (["ls", "memroy://b/w"], "no storage is called 'memroy'; did you mean 'memory'?"),
    ],
)
def test_a_mistyped_command_is_told_what_is_meant(command: Command, words: list[str], told: str) -> None:
    code, _, errors = command(*words)
    assert code == 2
    assert told in errors


def test_a_store_is_reached_with_options_and_insisted_on(command: Command, s3: Store) -> None:
    place = f"{s3.url}/digits"
    saver = checkpointer(Folder(place, **s3.options).child("checkpoints"))
    for step in (2, 3):
        saver.save(step, shared_state(step), own_state(step))
    words = [f"--storage-option={key}={json.dumps(value)}" for key, value in s3.options.items()]
    with s3.faults(rate=0.05, seed=1):
        listed = json.loads(command("ls", place, "--json", *words)[1])["checkpoints"]
        assert [one["step"] for one in listed] == [2, 3]
        assert all(one["saved"] for one in listed)
        code, out, _ = command("verify", place, *words)
        assert code == 0 and out.count("intact  ") == 2
        assert command("export", place, "-o", f"{place}/w.safetensors", *words)[0] == 0
        assert command("prune", place, "--keep-last", "1", "--yes", *words)[0] == 0
    keys = s3.files()
    steps = {key.partition("/checkpoints/")[2].partition("/")[0] for key in keys if "/step-" in key}
    assert steps == {"step-00000003"}
    assert s3.pending_uploads() == 0
    weights = load(Folder(place, **s3.options).read_bytes("w.safetensors"))
    assert same(weights["fc.weight"], shared_state(3)["model"]["fc.weight"])
    with s3.faults(deny_from=1):
        code, _, errors = command("ls", place, *words)
    assert code == 1 and errors.count("\n") == 1
    assert not any(str(value) in errors for key, value in s3.options.items() if key in ("key", "secret"))


def test_credentials_of_a_url_are_not_repeated(command: Command) -> None:
    code, _, errors = command("ls", "s4://me:secret@host/run")
    assert code == 2
    assert "secret" not in errors


def test_the_overview_needs_no_torch_and_a_listing_neither(tmp_path: Path) -> None:
    save(str(tmp_path), 1, 2)
    code = (
        "import sys\nfrom stratrun.cli.main import run\nassert run(['ckpt', '--help']) == 0\n"
        f"assert run(['ckpt', 'ls', {str(tmp_path)!r}]) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout and row(done.stdout, "2").endswith("last")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    save(str(tmp_path), 1)
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "stratrun", "ckpt", "ls", str(tmp_path)]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
