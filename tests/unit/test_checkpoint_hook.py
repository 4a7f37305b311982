from dataclasses import dataclass, field

import pytest

from stratrun.errors import ConfigError
from stratrun.hooks.checkpoint import CheckpointHook
from stratrun.hooks.dispatch import HookList
from stratrun.registry import HOOKS
from stratrun.state import TrainState


@dataclass
class Run:
    """A run that only counts, and writes down when it is asked to save."""

    epoch: int = 0
    iter: int = 0
    training: bool = True
    metrics: dict = field(default_factory=dict)
    saves: list = field(default_factory=list)
    state: TrainState = field(default_factory=TrainState)
    max_epochs: int | None = None
    max_iters: int | None = None
    has_validation: bool = False
    events: list = field(default_factory=list)

    def save_checkpoint(self, *, keep_last=None, protect=()):
        self.saves.append((self.iter, keep_last, set(protect)))
        return f"step-{self.iter:08d}"

    @property
    def rescue(self):
        return self

    def note(self):
        self.events.append(("whole", self.iter))

    def save(self, error, *, keep_last, protect):
        self.events.append((error, keep_last, set(protect)))

    @property
    def saved_at(self):
        return [at for at, *_ in self.saves]

    @property
    def protected(self):
        return self.saves[-1][2]


def train(hook, epochs=4, batches=3, results=(), **options):
    run = Run(**options)
    hook.before_train(run)
    for epoch in range(epochs):
        for _ in range(batches):
            run.iter += 1
            hook.after_train_iter(run)
        run.epoch += 1
        hook.after_train_epoch(run)
        if epoch < len(results):
            validate(hook, run, results[epoch])
    hook.after_train(run)
    return run


def validate(hook, run, metrics):
    run.metrics = metrics
    hook.after_val_epoch(run, metrics=metrics)


def test_by_default_each_epoch_is_saved_and_three_are_kept():
    assert train(CheckpointHook()).saves == [(at, 3, set()) for at in (3, 6, 9, 12)]


def test_intervals_count_epochs_or_iterations_and_the_end_is_saved_once():
    assert train(CheckpointHook(interval=3)).saved_at == [9, 12]
    assert train(CheckpointHook(interval=5, by_epoch=False)).saved_at == [5, 10, 12]
    assert train(CheckpointHook(interval=6, by_epoch=False)).saved_at == [6, 12]
    assert train(CheckpointHook(interval=5, by_epoch=False, save_on=None)).saved_at == [5, 10]
    assert train(CheckpointHook(interval=None)).saved_at == [12]


def test_the_best_is_saved_where_no_interval_saves_it_and_protected_from_then_on():
    hook = CheckpointHook(interval=None, save_best="accuracy", save_on=())
    run = train(hook, results=[{"accuracy": v} for v in (0.5, 0.9, 0.7, 0.8)])
    assert run.saves == [(3, 3, {3}), (6, 3, {6})]
    assert hook.best == {"accuracy": [[0.9, 6]]}


def test_less_is_better_for_a_loss():
    hook = CheckpointHook(interval=None, save_best="val/loss")
    train(hook, results=[{"val/loss": v} for v in (0.5, 0.9, 0.4, 0.8)])
    assert hook.best == {"val/loss": [[0.4, 9]]}


def test_of_equal_values_the_earlier_one_stays():
    hook = CheckpointHook(save_best="accuracy")
    assert train(hook, results=[{"accuracy": 0.5}] * 4).protected == {3}


def test_what_is_not_a_number_is_never_the_best():
    hook = CheckpointHook(save_best="loss")
    nan, inf = float("nan"), float("inf")
    assert train(hook, results=[{"loss": v} for v in (nan, 0.9, -inf, nan)]).protected == {6}
    assert hook.best == {"loss": [[0.9, 6]]}


def test_several_best_of_several_metrics_are_protected():
    hook = CheckpointHook(save_best={"accuracy": "greater", "weird": "less"}, keep_best=2)
    accuracies, weird = (0.5, 0.9, 0.7, 0.1), (4, 3, 2, 5)
    run = train(hook, results=[{"accuracy": a, "weird": w} for a, w in zip(accuracies, weird, strict=True)])
    assert run.protected == {6, 9}
    all_of_them = CheckpointHook(interval=None, save_best=["accuracy"], keep_best=9)
    assert train(all_of_them, results=[{"accuracy": a} for a in accuracies]).protected == {3, 6, 9, 12}


def test_state_survives_a_restart():
    hook = CheckpointHook(interval=None, save_best="accuracy", keep_best=2)
    run = train(hook, results=[{"accuracy": v} for v in (0.5, 0.9)])
    resumed = CheckpointHook(interval=None, save_best="accuracy", keep_best=2)
    resumed.load_state_dict(hook.state_dict())
    run.saves.clear()
    run.iter += 3
    validate(resumed, run, {"accuracy": 0.6})
    assert run.saves == [(15, 3, {6, 15})]
    run.saves.clear()
    resumed.after_train(run)
    assert run.saves == []


def test_a_validation_that_is_repeated_after_a_restart_does_not_count_twice():
    hook = CheckpointHook(interval=None, save_best="accuracy", keep_best=3)
    run = train(hook, epochs=2, results=[{"accuracy": 0.5}, {"accuracy": 0.9}])
    validate(hook, run, {"accuracy": 0.9})
    assert hook.best == {"accuracy": [[0.9, 6], [0.5, 3]]}
    assert run.saved_at == [3, 6]


def test_a_metric_that_is_watched_anew_starts_anew():
    hook = CheckpointHook(save_best="accuracy")
    train(hook, results=[{"accuracy": 0.5}])
    other = CheckpointHook(save_best="loss")
    other.load_state_dict(hook.state_dict())
    assert other.best == {"loss": []}


def test_evaluation_outside_training_saves_nothing():
    run = Run(training=False)
    validate(CheckpointHook(save_best="accuracy"), run, {"accuracy": 1.0})
    assert run.saves == []


def test_a_loop_that_gives_the_point_no_metrics_is_served_from_the_run():
    hooks, run = HookList(), Run(iter=4, metrics={"accuracy": 0.5})
    hooks.register(CheckpointHook(save_best="accuracy"))
    hooks.call(run, "after_val_epoch", {})
    assert run.saved_at == [4]


def test_a_metric_that_evaluation_does_not_give_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"save_best='acuracy' is no result .* did you mean 'accuracy'"):
        validate(CheckpointHook(save_best={"acuracy": "greater"}), Run(), {"accuracy": 1.0, "loss": 2.0})


def test_every_so_many_th_interval_checkpoint_stays_for_good_also_over_a_restart():
    hook = CheckpointHook(interval=2, by_epoch=False, keep_every=2, keep_last=1)
    assert train(hook).saves[-1] == (12, 1, {4, 8, 12})
    resumed = CheckpointHook(interval=2, by_epoch=False, keep_every=2, keep_last=1)
    resumed.load_state_dict(hook.state_dict())
    run = Run(iter=12)
    for _ in range(4):
        run.iter += 1
        resumed.after_train_iter(run)
    assert run.saves == [(14, 1, {4, 8, 12}), (16, 1, {4, 8, 12, 16})]


def test_only_interval_checkpoints_are_counted():
    hook = CheckpointHook(interval=2, keep_every=2, save_best="accuracy")
    run = train(hook, results=[{"accuracy": v} for v in (0.1, 0.2, 0.3, 0.4)])
    assert run.saved_at == [3, 6, 9, 12]
    assert run.protected == {9, 12}, "the best so far, and the second of the interval"


@pytest.mark.parametrize(
    ("save_on", "when_done", "when_stopped"),
    [
        (("end", "stop"), [6], [6]),
        ("end", [6], []),
        ("stop", [], [6]),
        (["exception"], [], []),
        (None, [], []),
    ],
)
def test_a_run_that_is_done_and_one_that_is_stopped_early_are_saved_where_asked(
    save_on, when_done, when_stopped
):
    for state, saved_at in ((TrainState(), when_done), (TrainState(stopping=True), when_stopped)):
        run = train(
            CheckpointHook(None, save_on=save_on), epochs=2, max_epochs=2 + state.should_stop, state=state
        )
        assert run.saved_at == saved_at


def test_a_stop_at_the_very_last_iteration_is_an_end():
    stopped = TrainState(stopping=True)
    assert train(CheckpointHook(None, save_on="end"), epochs=2, max_epochs=2, state=stopped).saved_at == [6]


def test_at_the_very_end_the_interval_is_left_to_the_save_at_the_end():
    for options in ({"interval": 1}, {"interval": 3, "by_epoch": False}):
        saves = []
        hook = CheckpointHook(**options)
        run = Run(max_epochs=2, max_iters=6)
        run.save_checkpoint = lambda run=run, saves=saves, **_: saves.append((run.iter, run.epoch))
        hook.before_train(run)
        for _ in range(6):
            run.iter += 1
            hook.after_train_iter(run)
            if run.iter % 3 == 0:
                run.epoch += 1
                hook.after_train_epoch(run)
        assert len(saves) == 1, "the last one is not saved before the training has ended"
        hook.after_train(run)
        assert saves[1:] == [(6, 2)]


def test_what_the_last_validation_finds_is_in_the_last_checkpoint():
    hook = CheckpointHook(save_best="accuracy")
    bests = []
    run = Run(max_epochs=2, has_validation=True)
    run.save_checkpoint = lambda **_: bests.append((run.iter, hook.best["accuracy"]))
    hook.before_train(run)
    for _ in range(2):
        run.iter, run.epoch = run.iter + 3, run.epoch + 1
        hook.after_train_iter(run)
        hook.after_train_epoch(run)
        validate(hook, run, {"accuracy": run.iter / 10})
    hook.after_train(run)
    assert bests[-1] == (6, [[0.6, 6]])
    assert [at for at, _ in bests].count(6) == 1


def test_without_a_metric_to_wait_for_the_last_epoch_is_saved_before_its_validation():
    hook, run = CheckpointHook(), Run(iter=3, epoch=1, max_epochs=1, has_validation=True)
    hook.after_train_iter(run)
    hook.after_train_epoch(run)
    assert run.saved_at == [3]


def test_an_interval_that_ends_with_the_last_epoch_is_saved_when_that_is_counted():
    hook = CheckpointHook(interval=3, by_epoch=False)
    run = Run(iter=3, max_epochs=1, max_iters=3, has_validation=True)
    hook.after_train_iter(run)
    assert run.saved_at == []
    run.epoch = 1
    hook.after_train_epoch(run)
    assert run.saved_at == [3]


def test_the_run_is_noted_whole_only_where_exceptions_are_to_be_saved():
    assert train(CheckpointHook()).events == []
    run = train(CheckpointHook(save_on="exception"), epochs=1, results=[{}])
    assert run.events == [("whole", at) for at in (0, 1, 2, 3, 3, 3)]


def test_a_validation_within_an_iteration_does_not_make_it_whole():
    hook, run = CheckpointHook(save_on="exception", save_best="accuracy"), Run()
    hook.before_train(run)
    run.iter = 1
    validate(hook, run, {"accuracy": 0.5})
    assert run.events == [("whole", 0)]


def test_an_exception_is_passed_on_where_that_was_asked_for():
    error, run = KeyboardInterrupt(), Run()
    CheckpointHook().on_exception(run, error)
    assert run.events == []
    hook = CheckpointHook(save_on=("end", "exception"), keep_last=2)
    hook.on_exception(run, error)
    assert run.events == [(error, 2, set())]
    hook.on_exception(Run(training=False, events=run.events), error)
    assert len(run.events) == 1


def test_a_validation_before_the_end_of_an_epoch_is_dealt_with_does_not_make_it_whole():
    hook, run = CheckpointHook(save_on="exception", save_best="accuracy"), Run()
    hook.before_train(run)
    run.iter = 3
    hook.after_train_iter(run)
    run.epoch = 1
    validate(hook, run, {"accuracy": 0.5})
    assert run.events == [("whole", 0), ("whole", 3)]


def test_a_save_that_was_left_to_the_end_is_made_up_when_the_last_validation_fails():
    error = ValueError()
    hook, run = CheckpointHook(save_best="accuracy"), Run(max_epochs=1, has_validation=True)
    hook.before_train(run)
    run.iter, run.epoch = 3, 1
    hook.after_train_epoch(run)
    assert run.saves == []
    hook.on_exception(run, error)
    assert run.events == [("whole", 3), (error, 3, set())]


def test_it_runs_behind_the_hooks_that_change_state():
    assert HOOKS.get("CheckpointHook") is CheckpointHook
    assert CheckpointHook.priority == 90
