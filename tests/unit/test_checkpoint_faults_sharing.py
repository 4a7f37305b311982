"""Several processes that save to one folder, of one run or of several, never spoil what another has saved."""

import uuid

import pytest
import torch

from stratrun.checkpoint import Attempt, SnapshotPlanner, StoredCheckpoint, layout, saving
from stratrun.checkpoint.discovery import committed_steps
from stratrun.checkpoint.remains import unfinished_run
from stratrun.errors import CheckpointError, PeerError, StorageError
from stratrun.storage import Folder, Retry
from tests.checkpoints import checkpointer, same, shared_state

QUICK = Retry(base=0.01, cap=0.05)


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        return Folder(f"{s3.url}/checkpoints", QUICK, **s3.options)
    return Folder(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture(params=["memory", "s3"])
def store(request, tmp_path):
    """One without rename."""
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        return Folder(f"{s3.url}/checkpoints", QUICK, **s3.options)
    return Folder(f"memory://{uuid.uuid4().hex}")


def begun(root, step, run_id, token, value=None):
    """An attempt that has written its shards, and what makes a checkpoint of it."""
    attempt = Attempt(root, step, run_id, token)
    live = {"x": torch.full((10,), float(step if value is None else value))}
    writer, planner = attempt.writer(), SnapshotPlanner(live)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    plans = writer.prepare_global_plan(plans)
    results = writer.write_data(planner.finish_plan(plans[0]), planner).wait()
    return attempt, lambda: attempt.commit(metadata, [results])


def contents(folder):
    return {
        f"{name}/{file}": folder.read_bytes(f"{name}/{file}")
        for name in folder.names()
        for file in folder.child(name).names()
    }


def value_of(root, step):
    stored = StoredCheckpoint(root.child(layout.name_of(step)))
    stored.verify()
    return stored.read().shared["x"][0].item()


def test_an_attempt_that_comes_second_neither_spoils_nor_removes_what_the_first_has_committed(root):
    first, commit_first = begun(root, 5, "run", "aaaa", 1)
    second, commit_second = begun(root, 5, "run", "bbbb", 2)
    commit_second()
    before = contents(root)
    with pytest.raises((CheckpointError, FileExistsError), match=r"has written meanwhile|is there already"):
        commit_first()
    assert value_of(root, 5) == 2
    first.abandon()
    assert value_of(root, 5) == 2
    assert [name for name in root.child("step-00000005").names() if "aaaa" in name] == []
    assert root.names() == ["step-00000005"]
    after = contents(root)
    assert after.items() <= before.items()
    second.abandon()  # as when a rank is lost in the exchange that follows
    assert value_of(root, 5) == 2


def test_one_that_is_committed_stays_when_a_rank_is_lost_right_after(root, monkeypatch):
    ours, real = checkpointer(root), saving.together

    def together(ranks, what, action):
        result = real(ranks, what, action)
        if committed_steps(root):
            raise PeerError("rank 1 is gone")
        return result

    monkeypatch.setattr(saving, "together", together)
    with pytest.raises(PeerError):
        ours.save(2, shared_state(2))
    assert committed_steps(root) == [2]
    assert same(checkpointer(root).load().shared, shared_state(2))


class Interleaved:
    """Has something else done before the k-th operation of a process on its folder."""

    def __init__(self, fatal, other):
        self._left = fatal
        self._other = other
        self.done = False

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        for name in ("write_bytes", "write_blocks", "names", "sizes", "exists", "remove", "read_bytes"):
            self._patch.setattr(Folder, name, self._counted(getattr(Folder, name)))
        return self

    def __exit__(self, *exception):
        self._patch.undo()

    def _counted(self, function):
        def call(*args, **kwargs):
            self._left -= 1
            if self._left == 0:
                self.done = True
                self._other()
            return function(*args, **kwargs)

        return call


def outcome_of(root, run_id, value):
    try:
        checkpointer(root, run_id).save(5, {"x": torch.full((10,), value)})
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize("other_run", ["other", "run"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_whenever_another_process_saves_the_same_step_what_has_a_marker_is_of_one_of_both(
    kind, other_run, tmp_path
):
    winners, gaps = set(), 0
    for fatal in range(1, 200):
        root = Folder(tmp_path / str(fatal) if kind == "local" else f"memory://{uuid.uuid4().hex}")
        outcomes = {}

        def save(run_id, value, root=root, outcomes=outcomes):
            outcomes[value] = outcome_of(root, run_id, value)

        with Interleaved(fatal, lambda save=save: save(other_run, 2.0)) as interleaved:
            save("run", 1.0)
        told = {value for value, error in outcomes.items() if error == "saved"}
        try:
            found = value_of(root, 5) if committed_steps(root) else None
        except CheckpointError:
            # The gap that the protocol tells of: both are the same run, and the first had looked before.
            assert (kind, other_run) == ("memory", "run")
            gaps += 1
            # The next save of that step mends it.
            checkpointer(root).save(5, {"x": torch.full((10,), 3.0)})
            assert value_of(root, 5) == 3.0
            continue
        if not interleaved.done:
            break
        assert found in told or (found is None and not told), f"at operation {fatal}: {outcomes}"
        winners.add(found)
    assert fatal > 9
    # Who comes second is refused; in the place of its own run it takes the first for dead.
    assert winners == ({1.0, 2.0} if (kind, other_run) == ("memory", "other") else {2.0})
    assert gaps <= 1


def test_what_another_run_is_writing_stays_and_whoever_comes_first_is_committed(store):
    theirs, commit_theirs = begun(store, 5, "theirs", "aaaa", 1)
    before = contents(store)
    checkpointer(store, "ours").save(5, {"x": torch.full((10,), 2.0)})
    assert before.items() <= contents(store).items()
    with pytest.raises(CheckpointError, match="has a COMMITTED that another process has written meanwhile"):
        commit_theirs()
    theirs.abandon()
    assert value_of(store, 5) == 2


def test_retention_leaves_what_another_run_is_writing_in_the_place_of_an_old_one(store):
    ours = checkpointer(store, "ours")
    ours.save(5, {"x": torch.full((10,), 2.0)})
    _, commit_theirs = begun(store, 5, "theirs", "aaaa", 1)
    ours.save(6, {"x": torch.full((10,), 2.0)}, keep_last=1)
    assert committed_steps(store) == [6]
    commit_theirs()
    assert (value_of(store, 5), value_of(store, 6)) == (1, 2)


def test_one_that_another_run_is_committing_is_not_written_over(store):
    _, commit = begun(store, 5, "theirs", "aaaa", 1)
    commit()
    store.remove("step-00000005/COMMITTED")
    before = contents(store)
    with pytest.raises(CheckpointError, match="begun or damaged, of the other run 'theirs'"):
        checkpointer(store, "ours").save(5, {"x": torch.zeros(10)})
    assert contents(store) == before
    # The same run, started again, goes on.
    assert unfinished_run(store) == "theirs"
    checkpointer(store, "theirs").save(5, {"x": torch.full((10,), 3.0)})
    assert value_of(store, 5) == 3


def test_a_damaged_one_of_another_run_is_not_written_over(root):
    checkpointer(root, "theirs").save(5, shared_state(5))
    root.write_bytes("step-00000005/index.json", b"{}")
    before = contents(root)
    with pytest.raises(CheckpointError, match="of the other run 'theirs'; choose another work_dir"):
        checkpointer(root, "ours").save(5, shared_state(5))
    assert contents(root) == before


def test_the_remains_of_a_dead_attempt_go_and_those_of_another_run_beside_them_stay(store):
    begun(store, 5, "theirs", "aaaa")
    before = contents(store)
    begun(store, 5, "ours", "bbbb")
    checkpointer(store, "ours").save(5, {"x": torch.full((10,), 2.0)})
    assert before.items() <= contents(store).items()
    assert [name for name in contents(store) if "bbbb" in name] == []
    assert value_of(store, 5) == 2


def test_when_the_answer_to_the_marker_is_lost_nothing_is_removed_that_it_vouches_for(s3):
    def folder(**retry):
        return Folder(f"{s3.url}/checkpoints", Retry(base=0.01, cap=0.05, **retry), **s3.options)

    with (
        s3.faults(rate=1.0, kinds=("lost",), path="COMMITTED"),
        pytest.raises(CheckpointError, match="COMMITTED"),
    ):
        checkpointer(folder(deadline=1.0)).save(5, shared_state(5))
    assert same(checkpointer(folder()).load().shared, shared_state(5))


def test_two_runs_that_share_a_root_leave_each_others_files_alone(root):
    first, second = checkpointer(root, "first"), checkpointer(root, "second")
    for step in (10, 20, 30):
        first.save(step, shared_state(step))
    begun(root, 40, "first", "0a")  # of a save that is under way in the other process
    before = contents(root)
    for step in (11, 21, 31):
        second.save(step, shared_state(step), keep_last=1)
    with pytest.raises(CheckpointError, match="saved by the other run 'first'; choose another work_dir"):
        second.save(30, shared_state(0))
    assert before.items() <= contents(root).items()
    assert committed_steps(root) == [10, 20, 30, 31]
    first.save(50, shared_state(50), keep_last=1)
    assert committed_steps(root) == [31, 50]


def test_a_store_that_was_away_when_old_ones_were_to_go_keeps_them_only_then(root, monkeypatch, caplog):
    for step in (1, 2, 3):
        checkpointer(root).save(step, shared_state(step))
    ours, real = checkpointer(root), Folder.read_bytes

    def away(self, path, limit=None):
        raise StorageError("the store is away")

    monkeypatch.setattr(Folder, "read_bytes", away)
    ours.apply_retention(1)
    assert "was not removed: the store is away" in caplog.text
    monkeypatch.setattr(Folder, "read_bytes", real)
    ours.apply_retention(1)
    assert committed_steps(root) == [3]
