"""Whether a precision computes in the formats that it declares, and keeps numbers right through them."""

import shutil
import tempfile
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from stratrun.errors import ConfigError
from stratrun.precision import Precision
from stratrun.registry import PRECISIONS
from stratrun.testing import problem
from stratrun.testing.compare import differences, farthest, numbers
from stratrun.testing.failing import Spiking
from stratrun.testing.plain_state import refuse_unplain
from stratrun.testing.problem import Recipe, Truth
from stratrun.testing.process_state import isolated
from stratrun.testing.ranks import shared_ranks
from stratrun.testing.report import Checks, NotChecked, Report, Wrong
from stratrun.testing.running import Part, Seen, alone, on_rank, train
from stratrun.testing.spec import portable, title

CLAIMS = {
    "declarations": "the class says what it is called, and its formats",
    "formats": "parameters and arithmetic have the formats that it declares",
    "context": "the forward context leaves the process as it was, be it by an error",
    "weights": "accumulation and clipping give about the weights of a plain loop in double precision",
    "clipping": "the norm that gradients are clipped by is that of the undivided, unscaled ones",
    "overflow": "an update that overflowed is dropped and counted, and training goes on",
    "resuming": "a run stopped within a window goes on to the weights of one that was not, to the bit",
    "ranks": "on two ranks the weights are the same on both",
}


def check_precision(precision: Any, *, only: Collection[str] | None = None) -> Report:
    """Train a small model in a precision on the CPU, and compare with a plain loop in double precision.

    Args:
        precision: A name, a class, or a dict with `type` and arguments; each run makes one of its own.
        only: Names of the checks to run, of `precision.CLAIMS`; all by default.

    Raises:
        CheckFailure: some failed. The message says which and why.
    """
    if isinstance(precision, Precision):
        raise ConfigError(
            f"precision={precision!r} is an object; give its class, or dict(type=TheClass, ...)"
        )
    built: Precision = PRECISIONS.build(precision, where="precision")
    built.setup("cpu")
    trial = _Trial(portable(PRECISIONS, precision), built)
    checks = Checks(f"precision={title(precision)}", CLAIMS, only)
    methods: dict[str, Callable[[], Any]] = {
        "declarations": trial.declarations,
        "formats": trial.formats,
        "context": trial.context,
        "weights": trial.weights,
        "clipping": trial.clipping,
        "overflow": trial.overflow,
        "resuming": trial.resuming,
        "ranks": trial.on_ranks,
    }
    try:
        for name, claim in CLAIMS.items():
            checks.run(name, claim, methods[name])
    finally:
        trial.close()
    return checks.done()


class _Trial:
    """The runs of one precision."""

    def __init__(self, spec: Any, built: Precision) -> None:
        self.built = built
        self.part = Part(strategy="single", precision=spec)
        self.recipe = Recipe(batch=4, accumulate=2, max_norm=0.05)
        self.folder = tempfile.mkdtemp(prefix="stratrun-check-")
        self.ranks = shared_ranks(2)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def tolerance(self) -> float:
        """What rounding may add up to in 8 updates."""
        return 16 * max(torch.finfo(d).eps for d in (self.built.param_dtype, self.built.compute_dtype))

    def truth(self) -> Truth:
        with isolated():
            return problem.plain_loop(self.recipe, self.part.model, torch.float64)

    def run(self, **options: Any) -> Seen:
        found: Seen = alone(train, self.part, self.recipe, f"{self.folder}/run", **options)
        return found

    # -- the checks

    def declarations(self) -> str:
        kind = type(self.built)
        if not isinstance(getattr(kind, "name", None), str):
            raise Wrong(f"{kind.__name__} has no name; write name = 'what users type' in the class")
        for field in ("param_dtype", "compute_dtype"):
            dtype = getattr(self.built, field)
            if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise Wrong(f"{field}={dtype!r} is no floating point format of torch")
        if "cpu" not in self.built.accelerators:
            raise Wrong(
                f"it works on {', '.join(sorted(self.built.accelerators))}, not on cpu, where the checks do"
            )
        return f"parameters {_short(self.built.param_dtype)}, products {_short(self.built.compute_dtype)}"

    def formats(self) -> None:
        module: nn.Module = nn.Linear(4, 4)
        module.register_buffer("count", torch.zeros((), dtype=torch.int64))
        module.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
        module = self.built.convert_module(module)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.dtype is not self.built.param_dtype:
                raise Wrong(
                    f"{name!r} is {_short(tensor.dtype)} and param_dtype={_short(self.built.param_dtype)}"
                )
        if module.get_buffer("count").dtype is not torch.int64 or not module.get_buffer("phase").is_complex():
            raise Wrong("convert_module() changed a buffer of whole or of complex numbers")
        with self.built.forward_context():
            product = module(torch.zeros(2, 4, dtype=self.built.param_dtype))
        if product.dtype is not self.built.compute_dtype:
            raise Wrong(
                f"a product is {_short(product.dtype)} and compute_dtype={_short(self.built.compute_dtype)}",
                "a sharded strategy gathers parameters in compute_dtype, so it must be what is computed in",
            )

    def context(self) -> None:
        def state() -> tuple[Any, ...]:
            return torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()

        before = state()
        try:
            with self.built.forward_context(), self.built.forward_context():
                raise KeyError
        except KeyError:
            pass
        if state() != before:
            raise Wrong(
                f"default dtype, autocast and grad mode were {before} and are {state()}",
                "put back what was there in a finally, and allow one context within another",
            )

    def weights(self) -> str:
        found, truth = self.run(), self.truth()
        if wrong := differences(found.weights, truth.weights, self.tolerance):
            raise Wrong(
                wrong, "backward(), unscale() and step() belong together: scale a loss, unscale, update"
            )
        return f"largest difference {farthest(found.weights, truth.weights):.0e} of {self.tolerance:.0e}"

    def clipping(self) -> str:
        found, truth = self.run(), self.truth()
        if wrong := numbers(found.norms, truth.norms, 4 * self.tolerance):
            raise Wrong(
                f"of the norms {wrong}",
                "unscale(optimizer) is called before clipping, and must divide out the scale",
            )
        return f"first norm {found.norms[0]:.4f}"

    def overflow(self) -> str:
        if type(self.built).step is Precision.step:
            raise NotChecked("it drops no updates")
        # Such a loss is what `non_finite` is for, too; here it stands for gradients that overflow.
        found = self.run(loss=Spiking(3), non_finite="ignore")
        if any(not value.isfinite().all() for value in found.weights.values()):
            raise Wrong("after one infinite loss weights are not finite", "step() leaves the update out then")
        windows = self.recipe.epochs * len(problem.windows(self.recipe))
        if (found.counters["step"], found.counters["skipped"]) != (windows - 1, 1):
            raise Wrong(
                f"of {windows} updates {found.counters['step']} were counted as done and "
                f"{found.counters['skipped']} as dropped, instead of {windows - 1} and 1",
                "step() returns False for an update that was dropped",
            )
        if not self.built.drops_overflow:
            raise Wrong(
                "drops_overflow is False, and step() drops updates",
                "without drops_overflow = True in the class a run takes the first overflow for an error",
            )
        return "1 dropped"

    def resuming(self) -> None:
        refuse_unplain(self.built.state_dict(), "state_dict()")
        whole = self.run()
        target = f"{self.folder}/broken"
        recipe = self.recipe
        alone(train, self.part, recipe, target, stop_at=3)
        after = alone(train, self.part, recipe, target, resume=True)
        if wrong := differences(after.weights, whole.weights, 0.0):
            raise Wrong(
                wrong, "state_dict() has all that later updates depend on, such as a scale and its age"
            )

    def on_ranks(self) -> str:
        part = Part(strategy="ddp", precision=self.part.precision)
        first, second = self.ranks(on_rank, train, part, self.recipe, f"{self.folder}/ranks")
        if wrong := differences(second.weights, first.weights, 0.0):
            raise Wrong(wrong, "what decides on an update must be the same on all ranks")
        if wrong := differences(first.weights, self.truth().weights, self.tolerance):
            raise Wrong(wrong)
        return f"largest difference {farthest(first.weights, self.truth().weights):.0e}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
