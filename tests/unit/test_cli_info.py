"""``stratrun info``: for readers, for programs, and under torchrun."""

import json

import pytest

from stratrun.cli.main import run


def test_readers_get_the_report_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("stratrun\n  version") and "\nfaults\n" in text


def test_programs_get_it_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["cores"] >= 1 and isinstance(told["faults"], list)


def test_of_several_ranks_one_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(["info"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--jsn"], "did you mean '--json'"), (["run.yaml"], "'run.yaml'")],
)
def test_what_it_does_not_take_is_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_overview_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "info  " in capsys.readouterr().out
