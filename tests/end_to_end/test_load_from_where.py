"""What `load_from` leads to: averages, names, files, and checkpoints of other numbers of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stratrun.checkpoint.parts import read_shared
from stratrun.errors import CheckpointError, CheckpointNotFoundError
from stratrun.runner import partial
from tests.end_to_end.loading import (
    ALL,
    EPOCHS,
    SAMPLES,
    Counting,
    Idle,
    StopAfter,
    load,
    network,
    runner,
    same,
    train,
)
from tests.problems import points, weights
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that was stopped within its second epoch."""
    folder = tmp_path_factory.mktemp("saved")
    train(folder, custom_hooks=[Counting(), StopAfter(8)])
    return str(folder / "checkpoints" / "step-00000008")


# Averages, names, files ---------------------------------------------------------------------------------


def test_averaged_weights_are_those_that_the_hook_kept(tmp_path: Path) -> None:
    first = train(tmp_path / "first", custom_hooks=[{"type": "EMAHook", "decay": 0.5}])
    averages = next(hook for hook in first.hooks if type(hook).__name__ == "EMAHook").state_dict()["averages"]
    wanted = {"path": str(tmp_path / "first"), "weights": "ema"}
    run = load(tmp_path / "second", network(seed=9), load_from=wanted)
    for name, value in weights(run.model).items():
        torch.testing.assert_close(value, averages[name].float(), rtol=0, atol=0)
    assert not same(weights(run.model), weights(first.model))


def test_weights_that_have_averages_beside_them_are_said_to_be_the_trained_ones(tmp_path: Path) -> None:
    train(tmp_path / "first", custom_hooks=[{"type": "EMAHook", "decay": 0.5}])
    wanted = {"path": str(tmp_path / "first")}
    plain = load(tmp_path / "plain", network(seed=9), load_from=wanted)
    averaged = load(tmp_path / "averaged", network(seed=9), load_from={**wanted, "weights": "ema"})
    assert plain.load_report is not None and averaged.load_report is not None
    assert any("weights='ema' takes them" in note for note in plain.load_report.notes)
    assert averaged.load_report.notes == []


def test_a_checkpoint_of_which_nothing_fits_is_refused_though_not_all_has_to(tmp_path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in network().state_dict().items()}, tmp_path / "w.pt")
    wanted = {"path": tmp_path / "w.pt", "strict": False}
    with pytest.raises(CheckpointError, match="nothing of it fits, be it by name or by shape; rename="):
        load(tmp_path / "run", network(seed=9), load_from=wanted)


def test_the_best_and_the_last_checkpoint_go_by_their_names(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "val_dataloader": {"dataset": points(SAMPLES), "batch_size": 8},
        "val_evaluator": {"type": "Accuracy"},
        "default_hooks": {"checkpoint": {"interval": 1, "save_best": "accuracy", "keep_last": None}},
    }
    first = train(tmp_path / "first", **options)
    found = {}
    for name in ("best", "best:accuracy", "last"):
        wanted = f"{tmp_path}/first/{name}"
        run = load(tmp_path / name, network(seed=9), load_from=wanted)
        assert run.load_report is not None
        found[name] = run.load_report.url.rpartition("/")[2]
        alone = runner(tmp_path / "first", network(seed=9), load_from=name, predict_dataloader=points(4))
        alone.predict()
        assert same(weights(alone.model), weights(run.model))
    assert found["best"] == found["best:accuracy"]
    assert found["last"] == "step-00000018"
    assert same(weights(run.model), weights(first.model))
    resumed = load(tmp_path / "on", resume=f"{tmp_path}/first/{'last'}")
    assert resumed.iter == 18
    with pytest.raises(CheckpointNotFoundError, match=r"load_from='.*best:loss': .*did you mean|accuracy"):
        load(tmp_path / "none", load_from=f"{tmp_path}/first/best:loss")


def test_a_file_of_weights_is_renamed_like_any_other(tmp_path: Path) -> None:
    trained = network(seed=5, body="backbone")
    torch.save({"state_dict": {f"module.{n}": v for n, v in weights(trained).items()}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a", network(body="backbone"), load_from={"path": tmp_path / "w.pt"})
    assert r"rename={r'^module\.(.*)': r'\1'} may be meant" in str(caught.value)
    rename = {r"^module\.(.*)": r"\1", r"^backbone\.": "body."}
    run = load(tmp_path / "b", load_from={"path": tmp_path / "w.pt", "rename": rename})
    assert [v.tolist() for v in weights(run.model).values()] == [
        v.tolist() for v in weights(trained).values()
    ]


def test_a_damaged_checkpoint_is_not_loaded_from(tmp_path: Path) -> None:
    train(tmp_path / "first")
    folder = tmp_path / "first" / "checkpoints" / "step-00000018"
    for shard in folder.glob("shard-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    for wanted in (str(folder), str(tmp_path / "first"), {"path": str(folder), "parts": ["model", "rng"]}):
        with pytest.raises(CheckpointError, match=r"load_from=.*damaged"):
            load(tmp_path / "second", load_from=wanted)


# Ranks -----------------------------------------------------------------------------------------------------


def on_ranks(work_dir: str, **changes: Any) -> dict[str, Any]:
    """A whole run, that of a rank, and what is left of it."""
    run = train(work_dir, network(seed=9), **changes)
    return {
        "weights": weights(run.model),
        "iter": run.iter,
        "draw": torch.rand(3).tolist(),
        "report": str(run.load_report),
        "url": run.last_checkpoint,
    }


def idle_on_ranks(work_dir: str, load_from: Any) -> dict[str, Any]:
    return on_ranks(work_dir, load_from=load_from, train_cfg={"type": Idle, "max_epochs": EPOCHS})


def test_parts_saved_by_one_rank_are_loaded_by_four(saved: str, four_ranks: Ranks, tmp_path: Path) -> None:
    alone = load(tmp_path / "alone", load_from=saved)
    found = four_ranks(idle_on_ranks, str(tmp_path / "four"), {"path": saved, "parts": ALL})
    assert all(same(one["weights"], weights(alone.model)) for one in found)
    assert {one["iter"] for one in found} == {8}
    assert len({tuple(one["draw"]) for one in found}) == 4
    assert "rng, those of ranks from 1 on seeded anew" in found[0]["report"]


def test_parts_saved_by_two_ranks_are_loaded_by_one(two_ranks: Ranks, tmp_path: Path) -> None:
    url = two_ranks(on_ranks, str(tmp_path / "two"))[0]
    wanted = {"path": url["url"], "parts": ALL}
    run = load(tmp_path / "one", network(seed=8), load_from=wanted)
    assert same(weights(run.model), url["weights"])
    assert run.iter == url["iter"]


def broken_on_rank_1(work_dir: str, path: str) -> str:
    """What this rank is told when rank 1 alone cannot read."""
    true = read_shared

    def broken(*args: Any) -> dict[str, Any]:
        found = true(*args)
        if torch.distributed.get_rank() == 1:
            raise OSError("the cable is out")
        return found

    partial.__dict__["read_shared"] = broken
    try:
        idle_on_ranks(work_dir, path)
    except CheckpointError as error:
        return str(error)
    finally:
        partial.__dict__["read_shared"] = true
    return "nothing"


def test_a_read_that_fails_on_one_rank_is_an_error_on_all(
    saved: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    for told in two_ranks(broken_on_rank_1, str(tmp_path / "two"), saved):
        assert "failed on rank 1" in told
        assert "the cable is out" in told


def misfit(work_dir: str, path: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        on_ranks(work_dir, load_from={"path": path, "rename": {"body": "trunk"}})
    return str(caught.value)


def test_what_does_not_fit_on_any_rank_is_told_once(saved: str, two_ranks: Ranks, tmp_path: Path) -> None:
    for told in two_ranks(misfit, str(tmp_path / "two"), saved):
        assert told.count("it lacks 'body.weight'") == 1


def misfit_on_rank_1(work_dir: str, path: str) -> str:
    body = "trunk" if torch.distributed.get_rank() == 1 else "body"
    with pytest.raises(CheckpointError) as caught:
        train(work_dir, network(body=body), load_from=path)
    return str(caught.value)


def test_a_model_that_differs_on_one_rank_is_an_error_on_all(
    saved: str, two_ranks: Ranks, tmp_path: Path
) -> None:
    for told in two_ranks(misfit_on_rank_1, str(tmp_path / "two"), saved):
        assert "failed on rank 1" in told
        assert "it lacks 'trunk.weight'" in told
