"""``stratrun list``: what a config may name, who brings it, and what it takes."""

import json
import re
from pathlib import Path

import pytest

from stratrun import registry
from stratrun.cli.list import KINDS
from stratrun.cli.main import run
from stratrun.hooks import EMAHook


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["list", *words]) == 0
    return capsys.readouterr().out


def test_the_kinds_are_the_registries() -> None:
    assert {kind.upper() for kind in KINDS} == set(registry.__all__) - {"Registry"}


def test_kinds_are_told_with_how_many_each_has(capsys: pytest.CaptureFixture[str]) -> None:
    counts = dict(line.split() for line in told(capsys).splitlines())
    assert set(counts) == set(KINDS)
    assert int(counts["strategies"]) == 5 and int(counts["optimizers"]) > 10


def test_an_entry_is_told_with_its_provider_and_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, "hooks").splitlines()
    first = (EMAHook.__doc__ or "").splitlines()[0]
    assert any(re.fullmatch(rf"EMAHook +stratrun +{re.escape(first)}", line) for line in lines)
    assert any(re.match(r"AdamW +torch\.optim", line) for line in told(capsys, "optimizers").splitlines())


def test_names_of_one_class_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in told(capsys, "precisions").splitlines() if line.startswith("bf16,")]
    assert len(lines) == 1 and "bf16-mixed" in lines[0]


def test_every_name_that_is_listed_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("hooks", "loops", "strategies", "loggers", "launchers", "optimizers"):
        for offer in json.loads(told(capsys, kind, "--json")):
            for name in offer["names"]:
                assert callable(getattr(registry, kind.upper()).get(name))


def test_one_entry_is_told_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "hooks", "EMAHook")
    assert re.search(r"decay +: float = 0\.999", text)
    arguments = json.loads(told(capsys, "hooks", "EMAHook", "--json"))["arguments"]
    assert arguments[0] == {"name": "decay", "type": "float", "default": "0.999"}


def test_what_the_user_registers_is_listed_as_theirs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stratrun import TRANSFORMS

    monkeypatch.setattr(TRANSFORMS, "_entries", {})
    (tmp_path / "listed_case.py").write_text(
        "from stratrun import TRANSFORMS\n\n\n@TRANSFORMS.register_module()\ndef Grey(image):\n"
        '    """Without colour."""\n    return image\n'
    )
    text = told(capsys, "transforms", "--import", str(tmp_path / "listed_case.py"))
    assert re.fullmatch(r"Grey +listed_case +Without colour\.\n", text)


def test_a_plugin_that_cannot_be_imported_is_listed_with_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "strange-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[stratrun.transforms]\nOdd = strange_case:Odd\n")
    (tmp_path / "strange_case.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = [line for line in told(capsys, "transforms").splitlines() if line.startswith("Odd")]
    assert re.match(r"Odd +strange +.*'nowhere_to_be_found', which is not installed", line)
