"""Runs in MLflow, kept in a database of its own and read back through its client."""

import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from stratrun.errors import Stopped
from stratrun.testing import check_logger
from tests.tracked import Shows, found_secrets, runner_of, stop_by_signal

mlflow = pytest.importorskip("mlflow", exc_type=ImportError)

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "store.db"
    with warnings.catch_warnings(action="ignore"):
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a database in the test's folder, where its files are kept as well."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, tmp_path / "store.db")
    uri = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(uri)
    client.create_experiment("tests")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    return client


def runs(client: Any, experiment: str = "tests") -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))


def files(client: Any, run: Any, path: str | None = None) -> set[str]:
    listed = client.list_artifacts(run.info.run_id, path)
    below = {name for one in listed if one.is_dir for name in files(client, run, one.path)}
    return below | {one.path for one in listed if not one.is_dir}


def steps(client: Any, run: Any, name: str) -> list[int]:
    return [one.step for one in client.get_metric_history(run.info.run_id, name)]


def test_a_run_is_there_as_a_whole_and_its_secrets_are_not(tmp_path: Path, store: Any) -> None:
    logger = {
        "type": "MLflowLogger",
        "experiment": "of its own",
        "name": "first",
        "params": {"seeds": [1, 2], "access_token": "hunter2"},
        "tags": {"team": "a", "link": "https://me:t0psecret@host/"},
    }
    runner = runner_of(tmp_path / "work", ["jsonl", logger], Shows(tmp_path))
    runner.train()
    runner.close()
    (run,) = runs(store, "of its own")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.tags["team"] == "a" and run.data.tags["link"] == "https://***@host/"
    params = run.data.params
    assert params["optimizer.lr"] == "0.1" and params["model.layers.1.width"] == "4"
    assert params["model.names"] == "['a', 'b']" and params["seeds"] == "[1, 2]"
    assert params["param_scheduler.api_key"] == "***"
    assert params["param_scheduler.url"].startswith("https://***@host/x?token=***")
    assert steps(store, run, "train/loss") == list(range(1, 9))
    assert steps(store, run, "train/loss_epoch") == [4, 8]
    last = store.get_metric_history(run.info.run_id, "epoch")[-1]
    assert (last.value, last.step) == (2.0, 8)
    names = files(store, run)
    assert {"config.yaml", "files/reports/last.txt", "text/notes/00000004.txt"} <= names
    pictures = [name for name in names if name.startswith("images/") and name.endswith(".png")]
    assert len(pictures) == 2 and "+step+4+" in min(pictures)
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (kept / "files" / "reports" / "last.txt").read_text() == "after 8"
    assert not found_secrets(tmp_path)


def test_a_resumed_run_goes_on_in_the_same_run_and_a_new_one_in_another(tmp_path: Path, store: Any) -> None:
    work, client = tmp_path / "work", store
    first = runner_of(work, ["mlflow"], Shows(tmp_path, stop_at=3))
    first.train()
    first.close()
    (run,) = runs(client)
    assert steps(client, run, "train/loss") == [1, 2, 3]
    second = runner_of(work, [{"type": "mlflow", "params": {"late": 1}}], Shows(tmp_path), resume=True)
    second.train()
    second.close()
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert steps(client, run, "train/loss") == list(range(1, 9))
    assert run.data.params["late"] == "1" and run.data.params["optimizer.lr"] == "0.1"
    third = runner_of(tmp_path / "other", ["mlflow"])
    third.train()
    third.close()
    assert len(runs(client)) == 2


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (None, "FINISHED")]
)
def test_how_a_run_has_ended_is_told(tmp_path: Path, store: Any, error: Any, status: str) -> None:
    runner = runner_of(tmp_path / "work", ["mlflow"], Shows(tmp_path, 2, error))
    if error is None:
        runner.train()
    else:
        with pytest.raises(type(error)):
            runner.train()
    # Without close(), as where an error ends a script.
    assert [run.info.status for run in runs(store)] == [status]
    runner.close()
    assert [run.info.status for run in runs(store)] == [status]


def test_a_run_that_a_signal_ends_is_killed_and_has_all_of_its_values(tmp_path: Path, store: Any) -> None:
    runner = runner_of(tmp_path / "work", ["mlflow"], stop_by_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        runner.train()
    (run,) = runs(store)
    assert run.info.status == "KILLED"
    assert steps(store, run, "train/loss") == list(range(1, runner.iter + 1))


def test_a_server_that_is_not_there_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")
    logger = {"type": "mlflow", "tracking_uri": "http://me:hunter2@127.0.0.1:9/", "queue": {"deadline": 1}}
    runner = runner_of(tmp_path / "work", [logger, "jsonl"])
    runner.train()
    runner.close()
    assert runner.iter == 8
    told = [entry.getMessage() for entry in caplog.records if entry.name == "stratrun.loggers"]
    assert told and "hunter2" not in "".join(told)
    assert any("failed" in text or "still to be done" in text for text in told)


@pytest.mark.usefixtures("ready_ranks")
def test_it_passes_the_checks_of_a_logger(store: Any) -> None:
    report = check_logger("mlflow")
    assert {finding.name for finding in report.findings if finding.outcome == "skipped"} == {"flushing"}
