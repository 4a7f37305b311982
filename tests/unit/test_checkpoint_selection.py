"""Names of checkpoints: what they stand for is read off the folder."""

from threading import Barrier

import pytest

from stratrun.checkpoint import layout
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.selection import locate, near, path_of, resolve, split_name
from stratrun.errors import CheckpointCorruptedError, CheckpointNotFoundError
from stratrun.storage import Folder
from tests.checkpoints import checkpointer, own_state, shared_state

ACCURACY = {"accuracy": [[0.9, 2], [0.8, 1]]}


@pytest.fixture
def place(tmp_path):
    return Folder(tmp_path / "run").child("checkpoints")


def save(place, step, best=None):
    meta = {} if best is None else {"best": best}
    checkpointer(place).save(step, shared_state(step), own_state(step), meta=meta)


def damage(place, step, file=layout.STATE):
    data = bytearray(place.read_bytes(f"{layout.name_of(step)}/{file}"))
    data[len(data) // 2] ^= 1
    place.write_bytes(f"{layout.name_of(step)}/{file}", bytes(data))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("best", ("", "best")),
        ("last", ("", "last")),
        ("best:accuracy", ("", "best:accuracy")),
        ("work_dirs/x/best", ("work_dirs/x", "best")),
        ("work_dirs/x/best/", ("work_dirs/x", "best")),
        ("work_dirs/x/checkpoints/last", ("work_dirs/x/checkpoints", "last")),
        ("work_dirs/best/last", ("work_dirs/best", "last")),
        ("/last", ("/", "last")),
        ("s3://bucket/run/best:val/loss", ("s3://bucket/run", "best:val/loss")),
        ("work_dirs/x", ("work_dirs/x", None)),
        ("work_dirs/x/the-best", ("work_dirs/x/the-best", None)),
        ("last/step-00000001", ("last/step-00000001", None)),
        ("weights/best.pt", ("weights/best.pt", None)),
        ("", ("", None)),
    ],
)
def test_a_name_is_the_last_part_of_what_was_written(url, parts):
    assert split_name(url) == parts


def test_last_is_the_newest_and_best_what_the_newest_says(place):
    for step in (1, 2, 3):
        save(place, step, ACCURACY)
    for start in (place, place.parent):
        assert resolve(start, "last") == place.child(layout.name_of(3))
        assert resolve(start, "best") == place.child(layout.name_of(2))
        assert resolve(start, "best:accuracy") == place.child(layout.name_of(2))
    assert path_of(place, "best") == "step-00000002"
    assert path_of(place.parent, "best") == "checkpoints/step-00000002"


def test_the_best_of_those_that_are_still_there_is_taken(place):
    save(place, 1)
    save(place, 3, ACCURACY)
    assert resolve(place, "best") == place.child(layout.name_of(1))


def test_a_damaged_newest_one_is_not_asked(place):
    save(place, 1)
    save(place, 2, {"accuracy": [[0.9, 1]]})
    save(place, 3, {"accuracy": [[0.9, 2]]})
    damage(place, 3)
    assert resolve(place, "best") == place.child(layout.name_of(1))


def test_where_all_are_damaged_each_reason_is_given(place):
    for step in (1, 2):
        save(place, step, ACCURACY)
        damage(place, step)
    with pytest.raises(CheckpointCorruptedError, match=r"every checkpoint .* step 2: .*state.json.* step 1:"):
        resolve(place, "best")


def test_where_no_metric_is_watched_the_way_to_watch_one_is_told(place):
    save(place, 1)
    with pytest.raises(CheckpointNotFoundError, match=r"no 'best', as no metric was watched; .*save_best="):
        resolve(place.parent, "best")


def test_of_several_metrics_one_must_be_named(place):
    save(place, 1, {"accuracy": [[0.9, 1]], "val/loss": [[0.1, 1]]})
    with pytest.raises(CheckpointNotFoundError, match=r"2 metrics .* best:accuracy, best:val/loss"):
        resolve(place, "best")
    assert resolve(place, "best:val/loss") == place.child(layout.name_of(1))
    with pytest.raises(CheckpointNotFoundError, match=r"best:acuracy: .* did you mean 'accuracy'\?"):
        resolve(place, "best:acuracy")


def test_a_best_that_is_gone_or_was_never_measured_is_told_apart(place):
    save(place, 5, {"accuracy": [[0.9, 2]], "loss": []})
    with pytest.raises(CheckpointNotFoundError, match=r"'accuracy': those of steps 2 are gone"):
        resolve(place, "best:accuracy")
    with pytest.raises(CheckpointNotFoundError, match=r"'loss': no finite value of it was measured yet"):
        resolve(place, "best:loss")


def test_a_folder_without_checkpoints_has_neither(place):
    for name in ("last", "best"):
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint in"):
            resolve(place.parent, name)


def test_a_checkpoint_has_no_last_one_in_it(place):
    save(place, 1)
    with pytest.raises(CheckpointNotFoundError, match="is itself a checkpoint"):
        resolve(place.child(layout.name_of(1)), "last")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("latest", "last"),
        ("newest", "last"),
        ("bst", "best"),
        ("bets:val/Loss", "best:val/Loss"),
        ("foo", None),
    ],
)
def test_what_is_like_a_name_is_recognised(given, meant, place):
    assert near(given) == meant
    with pytest.raises(CheckpointNotFoundError, match=repr(meant) if meant else "last, best and best:METRIC"):
        resolve(place, given)


def test_bare_names_belong_to_the_work_dir_and_folders_of_that_name_come_first(place, tmp_path):
    save(place, 1, {"accuracy": [[0.9, 1]]})
    work_dir = place.parent.local_path()
    newest = place.child(layout.name_of(1))
    assert locate("best", work_dir) == newest
    assert locate(work_dir / "last") == newest
    assert locate(tmp_path / "other", work_dir) == Folder(tmp_path / "other")
    (tmp_path / "best").mkdir()
    assert locate(tmp_path / "best", work_dir) == Folder(tmp_path / "best")


@pytest.mark.parametrize(
    "best", [3, [], {"accuracy": 7}, {"accuracy": [1, [2], "x", [0.5, "y"], [0.5, True]]}]
)
def test_nonsense_in_a_checkpoint_is_no_best(place, best):
    save(place, 1, best)
    with pytest.raises(CheckpointNotFoundError):
        resolve(place, "best")


def test_a_store_far_away_is_asked_of_several_checkpoints_at_once(monkeypatch):
    place = Folder("memory://asked-at-once")
    for step in (1, 2, 3, 4):
        place.write_bytes(
            f"{layout.name_of(step)}/{layout.COMMITTED if step != 3 else layout.MANIFEST}", b"x"
        )
    met, exists = Barrier(4, timeout=20), Folder.exists

    def after_all_have_come(folder, path=""):
        met.wait()
        return exists(folder, path)

    monkeypatch.setattr(Folder, "exists", after_all_have_come)
    assert committed_steps(place) == [1, 2, 4]
