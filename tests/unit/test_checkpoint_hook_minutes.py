"""Saving by the clock that all processes of a run have alike."""

from types import SimpleNamespace

from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.state import TrainState


def test_minutes_count_from_the_last_save_of_whatever_kind():
    hook = CheckpointHook(interval=50, by_epoch=False, minutes=1, save_on=None)
    saves = []
    run = SimpleNamespace(
        iter=0,
        epoch=0,
        max_epochs=None,
        max_iters=None,
        state=TrainState(),
        control=SimpleNamespace(seconds=1000.0),
        save_checkpoint=lambda **_: saves.append(run.iter),
    )
    hook.before_train(run)
    for _ in range(130):
        run.iter += 1
        run.control.seconds += 1.5
        hook.after_train_iter(run)
    # 40 iterations are a minute.
    assert saves == [40, 50, 90, 100]


def test_no_clock_is_read_where_no_minutes_are_asked_for():
    hook = CheckpointHook(interval=None)
    run = SimpleNamespace(iter=1, epoch=0, state=TrainState())  # it has no clock
    hook.after_train_iter(run)


def test_a_save_that_was_asked_for_is_made_once_and_at_the_end_if_it_comes_then():
    hook = CheckpointHook(interval=None, save_on=None)
    saves = []
    run = SimpleNamespace(
        iter=0,
        epoch=0,
        max_epochs=None,
        max_iters=None,
        state=TrainState(),
        save_checkpoint=lambda **_: saves.append(run.iter),
    )
    hook.before_train(run)
    for run.iter in range(1, 5):
        run.state.save_due |= run.iter == 2
        hook.after_train_iter(run)
    assert saves == [2]
    run.state.save_due = True
    hook.after_train(run)
    assert saves == [2, 4]
