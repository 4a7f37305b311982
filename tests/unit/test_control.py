"""What ends a run from outside, in one process: signals, the clock, requests."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stratrun import ConfigError, Hook, Runner
from stratrun.control import Control, ControlSettings, parse_control
from stratrun.control.signals import SignalTrap
from stratrun.errors import Interrupted, Stopped
from stratrun.state import TrainState

POINTS = [(torch.tensor([n / 10, 1.0]), torch.tensor(n % 2)) for n in range(12)]
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class At(Hook):
    """Does something when so many iterations are done, and notes what is done."""

    def __init__(self, iteration: int, act: Any) -> None:
        self.iteration, self.act = iteration, act
        self.saved: list[int] = []
        self.validated: list[int] = []
        self.handlers: list[Any] = []

    def after_train_iter(self, runner: Any) -> None:
        self.handlers = [signal.getsignal(number) for number in HANDLED]
        if runner.iter == self.iteration:
            self.act(runner)

    def before_save_checkpoint(self, runner: Any) -> None:
        self.saved.append(runner.iter)

    def after_val(self, runner: Any) -> None:
        self.validated.append(runner.iter)


def runner_of(work_dir: Path, hook: Any, **options: Any) -> Runner:
    given: dict[str, Any] = {
        "loss": "cross_entropy",
        "work_dir": work_dir,
        "train_dataloader": {"dataset": POINTS, "batch_size": 2},
        "val_dataloader": {"dataset": POINTS, "batch_size": 2},
        "val_evaluator": {"type": "Accuracy"},
        "test_dataloader": {"dataset": POINTS, "batch_size": 2},
        "test_evaluator": {"type": "Accuracy"},
        "train_cfg": {"max_epochs": 2, "val_interval": 5},
        "optimizer": {"type": "SGD", "lr": 0.1},
        "default_hooks": {"checkpoint": {"interval": None, "save_on": None}},
        "custom_hooks": [hook],
        "loggers": [],
    }
    return Runner(nn.Linear(2, 2), **{**given, **options})


class Pace(At):
    """Has each iteration take a minute, whatever the clock says."""

    def before_train_iter(self, runner: Any) -> None:
        runner.control._started -= 60.0


def kill(number: int) -> Any:
    return lambda runner: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_ends_the_run_saved_with_its_exit_code_and_the_handlers_are_put_back(
    number: int, tmp_path: Path
) -> None:
    before = [signal.getsignal(one) for one in HANDLED]
    hook = At(4, kill(number))
    runner = runner_of(tmp_path, hook)
    with pytest.raises(Stopped, match=f"{signal.Signals(number).name} after 4 iterations") as caught:
        runner.train()
    assert caught.value.code == 128 + number
    assert runner.iter == 4 and hook.saved == [4]  # though it is asked to save on nothing
    # For pytest and for whoever waits for it Ctrl-C stays what it is.
    assert isinstance(caught.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert hook.handlers != before and [signal.getsignal(one) for one in HANDLED] == before


def test_at_a_prompt_ctrl_c_leads_back_to_it_a_second_one_at_once_and_the_run_goes_on_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    hook = At(4, kill(signal.SIGINT))
    runner = runner_of(tmp_path, hook)
    with pytest.raises(KeyboardInterrupt, match="after 4 iterations") as caught:
        runner.train()
    assert not isinstance(caught.value, Interrupted) and runner.iter == 4 and hook.saved == [4]
    runner.train()
    assert runner.iter == 12

    def twice(runner: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    hook = At(2, twice)
    runner = runner_of(tmp_path / "twice", hook)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert runner.iter == 2 and hook.saved == []


def test_a_signal_after_everything_was_done_ends_the_process_all_the_same(tmp_path: Path) -> None:
    class Last(At):
        def after_run(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    runner = runner_of(tmp_path, Last(0, None))
    with pytest.raises(Stopped):
        runner.train()
    assert runner.iter == 12
    noted: list[Any] = []

    class Ranks:
        world_size = 2
        board = None

    state = TrainState()
    control = Control(state)
    with control.job("train", ControlSettings(), launched=True, prompt=False):
        control.connect(Ranks(), ControlSettings(), settle=noted.clear, apart=True, together=bool)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)  # with no exchange to come
    assert state.stop_signal == signal.SIGTERM and state.urgent


def test_signals_that_are_not_asked_for_or_ignored_are_left_alone_and_a_handler_of_others_is_called(
    tmp_path: Path,
) -> None:
    called: list[int] = []
    before = {number: signal.getsignal(number) for number in HANDLED}
    signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        hook = At(2, kill(signal.SIGTERM))
        runner_of(tmp_path / "ignored", hook).train()
        assert hook.handlers[0] is signal.SIG_IGN
        hook = At(2, kill(signal.SIGUSR1))
        runner_of(tmp_path / "other", hook, control_cfg={"signals": "SIGINT"}).train()
        assert called == [signal.SIGUSR1] and hook.handlers[2] is signal.getsignal(signal.SIGUSR1)
        with pytest.raises(Stopped):
            runner_of(tmp_path / "both", At(2, kill(signal.SIGUSR1))).train()
        assert called == [signal.SIGUSR1] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_a_thread_it_says_that_signals_do_not_stop_it_and_goes_on(tmp_path: Path) -> None:
    runner = runner_of(tmp_path, At(0, None))
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join()
    assert runner.iter == 12
    assert [reason for reason in runner.reasons if "signals" in reason]


def test_a_signal_in_a_job_within_another_ends_the_outer_one_tidily(tmp_path: Path) -> None:
    def test_within(runner: Any) -> None:
        runner.test()

    class Strike(At):
        def before_test_iter(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        def after_test(self) -> None:
            self.validated.append(-1)

    hook = Strike(3, test_within)
    runner = runner_of(tmp_path, hook)
    with pytest.raises(Stopped):
        runner.train()
    assert runner.iter == 3 and hook.saved == [3]


@pytest.mark.parametrize("job", ["test", "val"])
def test_an_evaluation_that_gets_a_signal_gives_no_results(job: str, tmp_path: Path) -> None:
    done: list[str] = []

    class Strike(Hook):
        def after_test_iter(self, batch_idx: int) -> None:
            done.append(f"{batch_idx}")
            os.kill(os.getpid(), signal.SIGTERM)

        after_val_iter = after_test_iter

        def on_break_off(self) -> None:
            done.append("left")

    runner = runner_of(tmp_path, Strike())
    with pytest.raises(Stopped):
        getattr(runner, job)()
    assert done == ["0", "left"] and runner.metrics == {}


def test_a_request_is_served_after_the_iteration_it_is_made_in(tmp_path: Path) -> None:
    def both(runner: Any) -> None:
        runner.request("save")
        runner.request("validate", "to see")

    hook = At(3, both)
    runner_of(tmp_path, hook, train_cfg={"max_epochs": 2, "val_begin": 9}).train()
    assert hook.saved == [3] and hook.validated == [3]
    hook = At(5, lambda runner: runner.request("stop", "enough"))
    runner = runner_of(tmp_path / "stopped", hook)
    runner.train()  # which ends as any other
    assert runner.iter == 5 and runner.state.stop_reason == "enough"


def test_requests_that_nothing_would_serve_are_refused(tmp_path: Path) -> None:
    for what, options, words in (
        ("safe", {}, "did you mean 'save'"),
        ("save", {"default_hooks": {"checkpoint": None}}, "no CheckpointHook"),
        ("validate", {"val_dataloader": None, "val_evaluator": None}, "no val_dataloader"),
    ):
        hook = At(1, lambda runner, what=what: runner.request(what))
        with pytest.raises(ConfigError, match=words):
            runner_of(tmp_path / what, hook, **options).train()


def test_a_time_limit_ends_the_run_saved_and_minutes_validate(tmp_path: Path) -> None:
    hook = Pace(0, None)
    cfg = {"max_epochs": 2, "val_begin": 9, "val_minutes": 2.5}
    runner = runner_of(tmp_path, hook, control_cfg={"time_limit": "0:06:30"}, train_cfg=cfg)
    runner.train()
    assert runner.iter == 7 and hook.saved == [7]
    assert hook.validated == [3, 6]
    assert "time limit" in runner.state.stop_reason


def test_a_validation_by_the_clock_that_a_signal_leaves_out_is_made_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    cfg = {"max_epochs": 2, "val_begin": 9, "val_minutes": 4.5}
    given = {"train_cfg": cfg, "default_hooks": {"checkpoint": {"interval": 1, "by_epoch": False}}}
    hook = Pace(5, kill(signal.SIGTERM))
    with pytest.raises(Stopped):
        runner_of(tmp_path, hook, **given).train()
    assert (hook.saved[-1], hook.validated) == (5, [])
    again = At(0, None)
    runner_of(tmp_path, again, **given, resume=True).train()
    assert again.validated == [5]


def test_hooks_may_take_back_a_stop_of_theirs_but_not_that_of_a_signal() -> None:
    state = TrainState()
    state.should_stop = True
    assert state.should_stop
    state.should_stop = False
    assert not state.should_stop
    state.agree("stop", urgent=True)
    state.should_stop = False
    assert state.should_stop
    asked: list[str] = []
    state = TrainState(ask=asked.append)
    state.should_stop = True
    state.should_stop = False
    assert asked == ["stop"] and not state.should_stop


def test_what_stops_a_run_is_no_part_of_its_state_but_a_validation_that_is_due() -> None:
    state = TrainState(iter=3, stopping=True, urgent=True, save_due=True, validate_due=True)
    again = TrainState()
    again.load_state_dict(state.state_dict())
    assert again == TrainState(iter=3, validate_due=True)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"signal": "SIGTERM"}, "did you mean 'signals'"),
        ({"signals": ["SIGTREM"]}, "did you mean 'SIGTERM'"),
        ({"signals": "SIGKILL"}, "no program can catch SIGKILL"),
        ({"signals": 15}, "names of signals"),
        ({"time_limit": "soon"}, "seconds above 0"),
        ({"time_limit": 0}, "seconds above 0"),
        ({"requeue": "yes"}, "True or False"),
        ({"requeue": True}, "resume='auto'"),
        ("SIGTERM", "must be a dict"),
    ],
)
def test_settings_that_will_not_do_are_refused(spec: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_control(spec, resume=False)


def test_a_time_limit_may_be_written_as_a_queue_writes_it() -> None:
    given = {"1-02:03:04": 93784, "11:50:00": 42600, 90: 90, 1.5: 1.5, None: None}
    assert {spec: parse_control({"time_limit": spec}).time_limit for spec in given} == given


def test_a_launcher_s_echo_of_a_signal_is_not_a_second_one(monkeypatch: Any) -> None:
    noted: list[int] = []
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    for launched, expected in ((True, []), (False, [128 + signal.SIGUSR2])):
        trap = SignalTrap([signal.SIGUSR2], noted.append, launched=launched, prompt=False)
        assert trap.set() == ""
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
        trap.release()
        assert left == expected
    assert noted == [signal.SIGUSR2] * 2


def test_one_process_is_called_after_no_iteration() -> None:
    class Alone:
        world_size = 1

    def after(settings: ControlSettings) -> int:
        found = Control(TrainState()).connect(
            Alone(),  # type: ignore[arg-type]
            settings,
            settle=lambda: None,
            apart=True,
            together=lambda: True,
        )
        return len(found)

    assert after(ControlSettings()) == 0
    assert after(ControlSettings(time_limit=5.0)) == 1
