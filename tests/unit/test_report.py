"""The page of a run: what it is told of, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stratrun import ConfigError, Runner
from stratrun.cli import main
from stratrun.report import read_history, write_report
from stratrun.report.charts import POINTS, charts, section_of
from stratrun.report.history import History, Series, flat
from tests.problems import perceptron, points

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def start(work_dir: Path, name: str, rows: list[dict[str, Any]], config: str = "") -> None:
    folder = work_dir / "runs" / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if config:
        (folder / "config.yaml").write_text(config)


def train_row(iteration: int, timestamp: float, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "iter": iteration, "epoch": iteration // 10, "timestamp": timestamp, **values}


def finished(work_dir: Path, lr: float = 0.1, **options: Any) -> Runner:
    runner = Runner(
        perceptron(),
        loss="cross_entropy",
        train_dataloader={"dataset": points(40), "batch_size": 4},
        val_dataloader={"dataset": points(8, 1), "batch_size": 4},
        val_evaluator="Accuracy",
        train_cfg={"max_epochs": 3},
        optimizer={"type": "SGD", "lr": lr},
        default_hooks={"logger": {"interval": 2}},
        work_dir=work_dir,
        **{"loggers": ["jsonl"], **options},
    )
    runner.train()
    runner.close()
    return runner


def embedded(page: Path) -> list[dict[str, Any]]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found is not None
    data: list[dict[str, Any]] = json.loads(found[1])
    return data


def test_what_a_start_did_again_is_told_once(tmp_path: Path) -> None:
    start(tmp_path, "20260101-000000", [train_row(i, 100.0 + i, loss=1.0) for i in (10, 20, 30)])
    start(tmp_path, "20260102-000000", [train_row(i, 9000.0 + i, loss=2.0) for i in (20, 30, 40)])
    series = read_history(str(tmp_path)).series["train", "loss"]
    assert series.iters == [10, 20, 30, 40]
    assert series.values == [1.0, 2.0, 2.0, 2.0]
    # The night between is no work.
    assert [round(hour * 3600) for hour in series.hours] == [0, 0, 10, 20]


def test_a_validation_that_was_done_again_is_told_once(tmp_path: Path) -> None:
    """Where training goes on between two of its log points, and validates before the next."""

    def val_row(iteration: int, accuracy: float) -> dict[str, Any]:
        return {"kind": "val", "iter": iteration, "timestamp": 1.0, "accuracy": accuracy}

    rows = [train_row(10, 1.0, loss=1.0), val_row(15, 0.1), val_row(18, 0.2), train_row(20, 2.0, loss=2.0)]
    start(tmp_path, "20260101-000000", rows)
    start(tmp_path, "20260102-000000", [val_row(18, 0.3), train_row(20, 9.0, loss=3.0)])
    series = read_history(str(tmp_path)).series
    assert (series["val", "accuracy"].iters, series["val", "accuracy"].values) == ([15, 18], [0.1, 0.3])
    assert series["train", "loss"].values == [1.0, 3.0]
    # One that validates where it goes on from has not done the training up to there again.
    start(tmp_path, "20260103-000000", [val_row(20, 0.4), train_row(30, 20.0, loss=4.0)])
    series = read_history(str(tmp_path)).series
    assert series["val", "accuracy"].values == [0.1, 0.3, 0.4]
    assert series["train", "loss"].values == [1.0, 3.0, 4.0]


def test_numbers_that_json_has_none_for_leave_gaps_in_a_page(tmp_path: Path) -> None:
    lines = [
        '"loss": NaN',
        '"loss": 1e999',
        f'"loss": 1{"0" * 400}',
        '"loss": 0.5',
        '"epoch": "x", "loss": 1',
    ]
    folder = tmp_path / "runs" / "20260101-000000"
    folder.mkdir(parents=True)
    rows = (f'{{"kind": "train", "iter": {i}, "timestamp": NaN, {line}}}\n' for i, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text("".join(rows) + "[" * 100_000)
    write_report([str(tmp_path)])
    (chart,) = embedded(tmp_path / "report.html")
    assert chart["lines"][0]["y"] == [None, None, None, 0.5, 1]


def test_a_name_with_html_in_it_ends_no_script(tmp_path: Path) -> None:
    start(tmp_path, "20260101-000000", [train_row(1, 1.0, **{"<!-- <script>": 1.0, "</script>": 2.0})])
    write_report([str(tmp_path)])
    assert {chart["title"] for chart in embedded(tmp_path / "report.html")} == {"<!-- <script>", "</script>"}
    page = (tmp_path / "report.html").read_text()
    assert "<" not in page.split('id="data">')[1].split("</script>")[0]


def test_a_page_is_not_written_over_a_folder(tmp_path: Path) -> None:
    start(tmp_path, "20260101-000000", [train_row(1, 1.0, loss=1.0)])
    with pytest.raises(ConfigError, match=r"is a folder; name a file, such as '.*report\.html'"):
        write_report([str(tmp_path)], str(tmp_path))


def test_an_evaluation_later_takes_nothing_from_the_curves(tmp_path: Path) -> None:
    start(tmp_path, "20260101-000000", [train_row(i, 100.0 + i, loss=1.0) for i in (10, 20, 30)])
    start(tmp_path, "20260102-000000", [{"kind": "test", "iter": 30, "timestamp": 0.0, "accuracy": 0.5}])
    history = read_history(str(tmp_path))
    assert history.series["train", "loss"].iters == [10, 20, 30]
    assert history.series["test", "accuracy"].values == [0.5]


def test_a_line_that_was_cut_off_and_numbers_that_are_none_leave_gaps(tmp_path: Path) -> None:
    start(tmp_path, "20260101-000000", [train_row(1, 1.0, loss="NaN"), train_row(2, 2.0, loss=0.5)])
    with (tmp_path / "runs" / "20260101-000000" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iter": 3, "lo')
    assert read_history(str(tmp_path)).series["train", "loss"].values == [None, 0.5]


@pytest.mark.parametrize(
    ("kind", "name", "section"),
    [
        ("train", "loss", "Curves"),
        ("train", "loss_epoch", "Curves"),
        ("val", "lr", "Curves"),
        ("train", "lr/head", "Learning rate"),
        ("train", "samples_per_s", "Throughput"),
        ("train", "data_share", "Time of an iteration"),
        ("train", "memory_max", "Memory"),
        ("train", "gpu_busy", "Machine"),
        ("parameters", "grad_norm/0.weight", "Weights and gradients"),
    ],
)
def test_a_value_is_drawn_in_its_section(kind: str, name: str, section: str) -> None:
    assert section_of(kind, name) == section


def history(name: str, series: dict[tuple[str, str], Series]) -> History:
    return History(name, name, ["one"], series, {}, {}, [], 0.0)


def test_training_and_validation_of_one_value_share_a_chart() -> None:
    line = Series([1], [0], [0.0], [0.5])
    runs = [history("a", {("train", "loss"): line, ("train", "loss_epoch"): line, ("val", "loss"): line})]
    (chart,) = charts([*runs, history("b", {("val", "loss"): line})])
    drawn = [(one["run"], one["kind"]) for one in chart["lines"]]
    assert drawn == [("a", "train"), ("a", "train, mean of epochs"), ("a", "val"), ("b", "val")]


def test_time_is_split_into_waiting_and_work() -> None:
    whole, waits = Series([1], [0], [0.0], [0.5]), Series([1], [0], [0.0], [0.125])
    drawn = charts([history("a", {("train", "time"): whole, ("train", "data_time"): waits})])
    (split,) = [chart["lines"] for chart in drawn if chart["title"] == "where it goes"]
    assert [(line["kind"], line["y"]) for line in split] == [("waits for data", [0.125]), ("works", [0.375])]


def test_long_lines_are_thinned_with_their_ends_kept() -> None:
    count = 2 * POINTS + 500
    line = Series(list(range(count)), [0] * count, [0.0] * count, [float(i) for i in range(count)])
    (chart,) = charts([history("a", {("train", "loss"): line})])
    y = chart["lines"][0]["y"]
    assert len(y) <= POINTS + 1
    assert (y[0], y[-1]) == (0.0, count - 1)


def test_a_page_has_curves_settings_and_checkpoints_of_a_run(tmp_path: Path) -> None:
    config = {"optimizer": {"lr": 0.1}, "model": "<b>bold</b> & {{data}}"}
    runner = finished(tmp_path / "first", custom_hooks=["ReportHook"], cfg=config)
    page = tmp_path / "first" / "report.html"
    text = page.read_text()
    drawn = embedded(page)
    titles = {chart["title"]: chart["section"] for chart in drawn}
    assert titles["loss"] == titles["accuracy"] == "Curves"
    assert titles["lr"] == "Learning rate"
    lines = {
        line["kind"]: line for chart in embedded(page) if chart["title"] == "loss" for line in chart["lines"]
    }
    logged = read_history(str(tmp_path / "first")).series["train", "loss"]
    assert lines["train"]["y"] == logged.values
    assert lines["train"]["iter"] == list(range(2, 31, 2))
    assert "step-00000030" in text and "optimizer.lr" in text
    assert text.count("<title>first</title>") == text.count("<h1>first</h1>") == 1
    # What a user wrote is text, whatever it looks like.
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; {{data}}" in text and "<b>bold</b>" not in text
    assert runner.iter == 30


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    finished(tmp_path)
    page = Path(write_report([str(tmp_path)])).read_text()
    head = page.partition('<script type="application/json"')[0]
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(""", head)
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.partition("<script>")[0]) == []


def test_runs_side_by_side_tell_which_settings_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr in (("one", 0.1), ("two", 0.2)):
        finished(tmp_path / name, lr, cfg={"optimizer": {"lr": lr}, "epochs": 3})
    out = tmp_path / "both.html"
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    differing = out.read_text().partition("Settings that differ")[2].partition("</table>")[0]
    assert "optimizer.lr" in differing and "epochs" not in differing
    assert {line["run"] for chart in embedded(out) for line in chart["lines"]} == {"one", "two"}


def test_a_folder_without_a_run_is_told_apart_from_none(tmp_path: Path) -> None:
    finished(tmp_path / "digits", 0.1)
    with pytest.raises(ConfigError, match="does not exist; did you mean 'digits'"):
        read_history(str(tmp_path / "digist"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no folder runs"):
        read_history(str(tmp_path / "empty"))
    (tmp_path / "mute" / "runs").mkdir(parents=True)
    with pytest.raises(ConfigError, match="the logger 'jsonl'"):
        read_history(str(tmp_path / "mute"))


def test_a_config_is_flat_by_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, "x"]}) == {"a.b": "1", "a.c": "{}", "d": '[1, "x"]'}


def test_a_run_that_fails_leaves_its_page_too(tmp_path: Path) -> None:
    from stratrun.hooks import LambdaHook

    def fail(runner: Any) -> None:
        if runner.iter == 8:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        finished(tmp_path, custom_hooks=["ReportHook", LambdaHook(after_train_iter=fail)])
    (chart,) = [chart for chart in embedded(tmp_path / "report.html") if chart["title"] == "lr"]
    assert chart["lines"][0]["iter"][-1] >= 6


def test_a_run_without_a_log_to_read_ends_well_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path, custom_hooks=["ReportHook"], loggers=["console"])
    assert "no report: " in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def drawn_by_a_browser(page: Path, fragment: str, folder: Path) -> tuple[str, str]:
    """The document after its scripts have run, and what was written on the console."""
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=15000 "
        "--window-size=1200,900"
    )
    command = [
        CHROMIUM,
        *flags.split(),
        f"--user-data-dir={folder}",
        "--dump-dom",
        f"file://{page}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.timeout(240)
def test_a_browser_draws_every_chart_and_smooths_the_curves(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    page = Path(write_report([str(tmp_path / "run")]))
    plain, told = drawn_by_a_browser(page, "", tmp_path / "profile")
    assert told == ""
    count = len(embedded(page))
    assert f'data-drawn="{count}"' in plain
    assert plain.count('class="main-svg"') >= count
    smooth, told = drawn_by_a_browser(page, "#smoothing=0.9&axis=hours&log=1", tmp_path / "profile")
    assert told == ""
    assert (
        "hours at work" in smooth
        and "hours at work" not in plain.partition("<main")[2].partition("</main>")[0]
    )
    assert smooth.count('class="js-line"') > plain.count('class="js-line"')
    labels = re.findall(r'class="ytick"><text[^>]*>([^<]+)<', smooth)
    assert labels and max(map(len, labels)) <= 8
