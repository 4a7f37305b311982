"""Predicting from the command line: which weights, which inputs, and where results go."""

import io
import sys
from pathlib import Path

import pytest

from stratrun.cli import raw_inputs
from stratrun.cli.arguments import Arguments, parse
from stratrun.cli.job import settle
from stratrun.cli.main import run
from stratrun.errors import DataError
from stratrun.storage import Folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_checkpoint_is_named_within_the_work_dir_or_by_its_path() -> None:
    Path("c.yaml").write_text("a: 1")
    Path("ema.yaml").write_text("load_from: {path: x, weights: ema}")
    for given, load_from in {
        "best": "best",
        "step-00000012": "work_dirs/c/checkpoints/step-00000012",
        "w/d/last": "w/d/last",
        "w.safetensors": "w.safetensors",
    }.items():
        assert settle(Arguments("test", "c.yaml", checkpoint=given))["load_from"] == load_from
    settled = settle(Arguments("predict", "ema.yaml", checkpoint="last"))["load_from"]
    assert settled == {"path": "last", "weights": "ema"}
    within = settle(Arguments("test", "c.yaml", checkpoint="step-00000001", work_dir="s3://b/w/"))
    assert within["load_from"] == "s3://b/w/checkpoints/step-00000001"


def test_raw_inputs_follow_their_option() -> None:
    words = "predict c.yaml a=1 --inputs a.txt b*.png --checkpoint best --inputs c.txt --out o"
    arguments = parse(words.split())
    assert arguments.inputs == ("a.txt", "b*.png", "c.txt")
    assert (arguments.checkpoint, arguments.out, arguments.settings) == ("best", "o", ("a=1",))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train c.yaml --checkpoint best", "training goes on with --resume"),
        ("test c.yaml --inputs a.txt", "--inputs is an option of predict, not of test"),
        ("predict c.yaml --out a.jsonl", "--out goes with --inputs"),
        ("predict c.yaml --inputs", "expected at least one argument"),
        ("predict c.yaml --inputs a.txt", "which weights? give --checkpoint last"),
        ("predict c.yaml --checkpoint last --inputs b.txt", "there is no such file; did you mean 'a.txt'"),
        ("predict c.yaml --checkpoint last --inputs *.png", "no file fits this pattern"),
        ("predict c.yaml --checkpoint last --inputs d", "this is a folder; name files, such as 'd/*'"),
        ("predict c.yaml --checkpoint last --inputs n/a", "there is no folder 'n'"),
        ("predict c.yaml --checkpoint last --inputs a.txt b=1", "settings come before --inputs"),
        ("predict c.yaml --checkpoint last --inputs a.txt --out d", "a folder; name a file, such as 'd/res"),
        ("predict c.yaml --checkpoint last --inputs a.txt --out d/../a.txt", "this is one of the inputs"),
    ],
)
def test_options_of_a_prediction_are_told_what_is_wrong_with_them(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_text("model: {type: Linear}")
    Path("a.txt").write_text("a")
    Path("d").mkdir()
    assert run(words.split()) == 2
    assert told in capsys.readouterr().err


def test_inputs_are_lines_of_texts_and_of_json_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\nthree")
    Path("b.jsonl").write_text('{"x": 1}\n\n[2]\n')
    Path("p").mkdir()
    for name in ("2.png", "10.png", "1.png"):
        Path("p", name).touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"typed\n")))
    found = list(raw_inputs.read(raw_inputs.check(["a.txt", "b.jsonl", "p/*.png", "-", "s3://b/x.png"])))
    assert found == [
        ("a.txt:1", "one"),
        ("a.txt:2", ""),
        ("a.txt:3", "three"),
        ("b.jsonl:1", {"x": 1}),
        ("b.jsonl:3", [2]),
        *((f"p/{name}", f"p/{name}") for name in ("1.png", "10.png", "2.png")),
        ("-:1", "typed"),
        ("s3://b/x.png", "s3://b/x.png"),
    ]
    Path("b.jsonl").write_text('{"x": 1}\n{')
    with pytest.raises(DataError, match=r"--inputs b\.jsonl:2 cannot be read"):
        list(raw_inputs.read(["b.jsonl"]))


@pytest.mark.parametrize("where", ["o/results.jsonl", "memory://cli/results.jsonl"])
def test_results_that_were_not_written_to_their_end_leave_those_before_them(where: str) -> None:
    target = Folder(where)
    for text in (b"first", b"second"):
        with raw_inputs.replaced(where, {}) as stream:
            stream.write(text)
        with pytest.raises(ZeroDivisionError), raw_inputs.replaced(where, {}) as stream:
            stream.write(b"half")
            raise ZeroDivisionError
        assert target.parent.read_bytes(target.name) == text
        assert target.parent.names() == ["results.jsonl"]
    target.parent.remove(target.name)
