"""`dev_cfg`: less than the whole run, while it is being developed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from stratrun.blocks.transforms import Compiling
from stratrun.data import Limit, has_no_length
from stratrun.errors import ConfigError, nearest
from stratrun.loops.evaluate import names_loaders
from stratrun.problems import part
from stratrun.runner.form import Form, Job

if TYPE_CHECKING:
    from stratrun.runner.context import RunnerContext

_JOBS: tuple[Job, ...] = ("train", "val", "test", "predict")


@dataclass(frozen=True, slots=True)
class DevSettings:
    """What `dev_cfg` may set."""

    fast_dev_run: int = 0
    """So many batches of each job, one epoch, and nothing that lasts: see `stratrun.runner.trial`. True is 1;
    0 for a whole run."""
    limit_batches: Mapping[str, int | float] = field(default_factory=dict)
    """Batches of each rank in a pass over the data of a job, or, below or at 1.0, the share of them. One
    number is for all jobs."""
    overfit_batches: int | None = None
    """Train on so many batches, the same in each epoch, unshuffled."""
    sanity_batches: int | None = None
    """Validate so many batches before a training begins, and throw the results away."""
    detect_anomaly: bool = False
    """Have the backward pass of training look for what is no number, and name the operation it is of."""

    def limit(self, job: str) -> Limit | None:
        """How much a job reads of its data; None for all."""
        if self.fast_dev_run:
            return Limit(self.fast_dev_run)
        if job == "train" and self.overfit_batches is not None:
            return Limit(self.overfit_batches, same=True)
        return Limit(self.limit_batches[job]) if job in self.limit_batches else None

    def told(self) -> list[str]:
        """A line on each setting that changes what the run is, for its start."""
        lines = []
        if number := self.fast_dev_run:
            lines.append(
                f"fast_dev_run={number}: {_batches(number)} each of training, validation, test, prediction, "
                "one epoch; off are loggers but the console, resume='auto', requeue and what keeps "
                "checkpoints: one is written, loaded and removed, with all files of the run"
            )
        if number := self.overfit_batches or 0:
            lines.append(
                f"overfit_batches={number}: the first {_batches(number)} of the training data in each epoch; "
                "shuffling is off, and transforms draw as ever"
            )
        if self.detect_anomaly:
            lines.append("detect_anomaly=True: each operation is looked at on the way back, which is slow")
        return lines


def cut_down(form: Form) -> Form:
    """The form of a trial run, if one is asked for."""
    if form.dev_cfg is None:
        return form
    # Only now, as most runs are none.
    from stratrun.runner import trial

    return trial.cut_down(form)


def parse_dev(spec: Any) -> DevSettings:
    """Raises ConfigError for an unknown setting, a value that will not do, or two that contradict."""
    known = [one.name for one in fields(DevSettings)]
    if spec is None:
        return DevSettings()
    if not isinstance(spec, Mapping):
        raise ConfigError(f"dev_cfg={spec!r} must be a dict; its settings are {', '.join(known)}")
    for key in spec:
        with part():
            if key in known:
                continue
            raise ConfigError(f"dev_cfg has no setting {key!r}; {nearest(str(key), known)}")
    anomaly = spec.get("detect_anomaly", False)
    if not isinstance(anomaly, bool):
        raise ConfigError(f"dev_cfg: detect_anomaly={anomaly!r} must be True or False")
    settings = DevSettings(
        _fast(spec.get("fast_dev_run", False)),
        _limits(spec.get("limit_batches")),
        _number("overfit_batches", spec.get("overfit_batches")),
        _number("sanity_batches", spec.get("sanity_batches")),
        anomaly,
    )
    _refuse_both(settings, spec)
    return settings


def check_dev(form: Form, job: Job) -> None:
    """Refuse what does not go with the rest of a run, building nothing.

    Raises:
        ConfigError: a share is asked of data without length, validation without data, or what cannot be.
    """
    settings = parse_dev(form.dev_cfg)
    for one in _JOBS if job == "train" else (job,):
        _refuse_share(form, one, settings)
    if settings.fast_dev_run and form.resume not in (False, "auto"):
        raise ConfigError(
            f"dev_cfg: fast_dev_run={settings.fast_dev_run} tries a run from its beginning, and "
            f"resume={form.resume!r} goes on with one; leave one of them out, or give resume='auto', which "
            "it passes over"
        )
    if job != "train":
        return
    if settings.sanity_batches is not None and not form.validates:
        raise ConfigError(
            f"dev_cfg: sanity_batches={settings.sanity_batches} tries the validation, but there is none "
            "without a val_dataloader; give one, or leave sanity_batches out"
        )
    compiling = Compiling.parse(form.compile)
    if settings.detect_anomaly and compiling is not None and (compiling.step or compiling.graphs):
        which = "step" if compiling.step else "graphs"
        raise ConfigError(
            f"dev_cfg: detect_anomaly=True looks at each operation of a step, and with compile=dict({which}="
            f"True) these are not there one by one; leave {which} out for as long as you look"
        )


@contextmanager
def leaving_nothing(runner: "RunnerContext") -> Iterator[None]:
    """Remove the files of a trial run after the block, however that ends."""
    try:
        yield
    finally:
        if runner.traces is not None:
            runner.traces.remove()


def _fast(given: Any) -> int:
    if isinstance(given, bool | None):
        return int(bool(given))
    if not isinstance(given, int) or given < 1:
        raise ConfigError(
            f"dev_cfg: fast_dev_run={given!r} must be True, or a whole number of batches above 0"
        )
    return given


def _number(name: str, given: Any) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise ConfigError(f"dev_cfg: {name}={given!r} must be a whole number of batches above 0")
    return given


def _limits(given: Any) -> dict[str, int | float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(_JOBS, _limit("", given))
    for job in given:
        if job not in _JOBS:
            raise ConfigError(f"dev_cfg: limit_batches is of no job {job!r}; {nearest(str(job), _JOBS)}")
    return {job: _limit(f"{job}=", one) for job, one in given.items() if one is not None}


def _limit(where: str, given: Any) -> int | float:
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if whole or (isinstance(given, float) and 0 < given <= 1):
        limit: int | float = given
        return limit
    raise ConfigError(
        f"dev_cfg: limit_batches: {where}{given!r} must be a whole number of batches above 0, or the share "
        "of them, above 0.0 and up to 1.0"
    )


def _refuse_both(settings: DevSettings, spec: Mapping[str, Any]) -> None:
    fast, overfit = settings.fast_dev_run, settings.overfit_batches
    for other in ("limit_batches", "overfit_batches"):
        if fast and spec.get(other) is not None:
            raise ConfigError(
                f"dev_cfg: fast_dev_run={fast} and {other}={spec[other]!r} both say how many batches there "
                "are; leave one of them out"
            )
    if overfit is not None and "train" in settings.limit_batches:
        raise ConfigError(
            f"dev_cfg: overfit_batches={overfit} and limit_batches={spec['limit_batches']!r} both say how "
            f"many batches to train on; limit other jobs by name, such as limit_batches=dict(val={overfit})"
        )


def _refuse_share(form: Form, job: Job, settings: DevSettings) -> None:
    limit, loaders = settings.limit_batches.get(job), form.of(job, "dataloader")
    if loaders is None or not isinstance(limit, float):
        return
    named = dict(loaders) if names_loaders(loaders) else {"": loaders}
    for name, one in named.items():
        if has_no_length(one):
            where = f"{job}_dataloader.{name}".rstrip(".")
            raise ConfigError(
                f"dev_cfg: limit_batches: {job}={limit!r} is a share of an epoch of {where}, which has no "
                f"length; give a number of batches, such as {job}=100"
            )


def _batches(number: int) -> str:
    return f"{number} batch{'es' * (number > 1)}"
