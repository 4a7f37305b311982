"""Models built without memory against the same built as ever."""

import ctypes
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stratrun import deferred
from stratrun.errors import ModelError


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def both(make: Callable[[], nn.Module], small: int = 0) -> tuple[nn.Module, nn.Module, deferred.Initial]:
    torch.manual_seed(3)
    plain = make()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    module, initial = deferred.build(make, small=small)
    assert torch.equal(torch.get_rng_state(), after)
    assert initial is not None
    return plain, module, initial


def check_same(make: Callable[[], nn.Module], small: int = 0) -> tuple[nn.Module, nn.Module]:
    plain, module, initial = both(make, small)
    expected, found = tensors_of(plain), tensors_of(module)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        value = initial(name)
        assert found[name].device.type == "meta"
        assert (value.dtype, value.shape, value.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert found[name].stride() == tensor.stride() and found[name].dtype == tensor.dtype
        assert found[name].requires_grad == tensor.requires_grad
        assert torch.equal(value, tensor), name
    return plain, module


def of(write: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    """A layer with its weight written to, between others that draw before and after it."""

    def make() -> nn.Module:
        layers = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 14), nn.Linear(14, 3))
        with torch.no_grad():
            write(layers[1].weight)
        return layers

    return make


def reuse_numpy(weight: Tensor) -> None:
    room = np.arange(140, dtype=np.float32).reshape(14, 10)
    weight.copy_(torch.from_numpy(room))
    room[:] = 7


def write_over_source(weight: Tensor) -> None:
    source = torch.tensor(np.arange(140.0).reshape(14, 10).tolist())
    weight.add_(source)
    source.zero_()


def swap_halves(weight: Tensor) -> None:
    first = weight[:7].clone()
    weight[:7] = weight[7:]
    weight[7:] = first


def own_generator(weight: Tensor) -> None:
    nn.init.normal_(weight, generator=torch.Generator().manual_seed(5))


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda w: w.normal_(0, 0.02),
    "part of it normal": lambda w: w[3:9].normal_(),
    "columns normal": lambda w: w.t()[2:4].uniform_(),
    "trunc_normal": lambda w: nn.init.trunc_normal_(w, std=0.7),
    "narrow trunc_normal": lambda w: nn.init.trunc_normal_(w, a=0.6, b=2.0),
    "orthogonal": nn.init.orthogonal_,
    "sparse": lambda w: nn.init.sparse_(w, 0.4),
    "eye": nn.init.eye_,
    "xavier": nn.init.xavier_normal_,
    "scaled by its own norm": lambda w: w.div_(w.norm(dim=1, keepdim=True)),
    "asked for a number": lambda w: w.mul_(1 / float(w.abs().max())) if w.sum() != 0 else None,
    "written through numpy": lambda w: w.numpy().__setitem__(slice(2, 4), 5.0),
    "read through numpy": lambda w: w.mul_(float(w.numpy().std())),
    "from memory used again": reuse_numpy,
    "from a tensor used again": write_over_source,
    "halves swapped": swap_halves,
    "own generator": own_generator,
    "masked": lambda w: w.masked_fill_(torch.rand(14, 10) > 0.5, 0.0),
    "indexed by what is not zero": lambda w: w.view(-1)[(w > 0).view(-1).nonzero().squeeze(1)].sum(),
    "of the data of it": lambda w: setattr(w, "data", w.data.clone() * 2),
    "data of a real tensor": lambda w: setattr(w, "data", torch.tensor([[1.0] * 10] * 14)),
    "list": lambda w: w.copy_(torch.tensor(w.tolist()) + 1),
    "to a device by name": lambda w: w.to("cpu").normal_() if w.device.type == "cpu" else None,
    "others of its device": lambda w: w.add_(torch.arange(10.0, device=w.device)),
    "permutation": lambda w: w.copy_(w[torch.randperm(14)]),
    "bernoulli of itself": lambda w: w.copy_(torch.bernoulli(w.sigmoid())),
    "poisson of itself": lambda w: w.copy_(torch.poisson(w.abs() * 9)),
    "svd": lambda w: w.copy_(torch.linalg.svd(w, full_matrices=False)[0]),
    "several at once": lambda w: torch._foreach_mul_([w[:2], w[4:]], 3.0),
    "frozen": lambda w: w.requires_grad_(False),
    "not done for lack of memory": lambda w: None if w.is_meta else w.fill_(3.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_weight_has_the_value_of_a_plain_build(name: str) -> None:
    for small in (0, 300):  # 300: the biases and the last layer are real
        check_same(of(WRITES[name]), small)


class Odd(nn.Module):
    """All at once of what constructors do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 30, padding_idx=3)
        self.head = nn.Linear(30, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.scaled = nn.Parameter(0.02 * torch.randn(30, 30))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.register_buffer("mask", torch.tril(torch.ones(20, 20)).view(1, 20, 20))
        self.register_buffer("pace", 1e4 ** -(torch.arange(0, 64, 2).float() / 64), persistent=False)
        self.norm = nn.BatchNorm1d(30)
        self.weighted = parametrizations.weight_norm(nn.Linear(20, 20))
        self.turned = parametrizations.orthogonal(nn.Linear(20, 20))
        self.bounded = parametrizations.spectral_norm(nn.Linear(20, 20))
        self.taken = nn.Linear(30, 30)
        self.taken.load_state_dict(nn.Linear(30, 30).state_dict())
        self.half = nn.Linear(30, 30).to(torch.bfloat16)
        self.complex = nn.Parameter(torch.randn(20, 20, dtype=torch.cfloat).conj())
        self.lstm = nn.LSTM(20, 20)
        self.convolution = nn.Conv2d(3, 20, 3).to(memory_format=torch.channels_last)
        self.size = self.convolution(torch.zeros(1, 3, 9, 9)).numel()
        self.rates = torch.linspace(0, 0.1, 40).tolist()
        self.apply(self._init)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("linear2.weight"):
                    parameter.mul_(1 / math.sqrt(2))

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and not nn.utils.parametrize.is_parametrized(module):
            nn.init.normal_(module.weight, std=0.02)


def test_a_model_of_many_ways_is_that_of_a_plain_build() -> None:
    for small in (0, 1000, 3000):
        plain, module = check_same(Odd, small)
        assert isinstance(plain, Odd) and isinstance(module, Odd)
        assert (module.size, module.rates) == (plain.size, plain.rates)
        assert module.head.weight is module.embedding.weight
        assert type(module.scaled) is nn.Parameter


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(9, 9)
        self.table = torch.randn(9, 9)
        self.more = {"tables": [torch.randn(9, 9), self.table[2:]]}
        self.linear.weight.note = "mine"  # type: ignore[attr-defined]
        noise = torch.randn(9, 9)
        self.noise = lambda: noise


def test_tensors_that_are_no_parameters_have_their_values_at_once() -> None:
    plain, module, _ = both(Keeps)
    assert isinstance(plain, Keeps) and isinstance(module, Keeps)
    assert torch.equal(module.table, plain.table)
    assert torch.equal(module.more["tables"][0], plain.more["tables"][0])
    assert torch.equal(module.noise(), plain.noise())
    assert module.linear.weight.note == "mine"
    module.table.zero_()
    assert module.more["tables"][1].abs().sum() == 0  # still of the same memory


def test_a_model_without_large_tensors_of_its_own_is_built_as_ever() -> None:
    module, initial = deferred.build(lambda: nn.Linear(4, 4))
    assert initial is None and module.weight.device.type == "cpu"
    ready = nn.Linear(400, 400)
    module, initial = deferred.build(lambda: ready, small=0)
    assert module is ready and initial is None and ready.weight.device.type == "cpu"


def test_parameters_that_were_there_before_keep_their_values_beside_new_ones() -> None:
    ready = nn.Linear(40, 40)
    before = ready.weight.detach().clone()
    module, initial = deferred.build(lambda: nn.Sequential(ready, nn.Linear(40, 40)), small=0)
    assert initial is not None and {p.device.type for p in module.parameters()} == {"meta"}
    assert torch.equal(initial("0.weight"), before)


def test_what_is_built_on_the_meta_device_on_purpose_stays_there_and_draws_nothing() -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            ghost = nn.Linear(9, 9)
        ghost.load_state_dict(nn.Linear(9, 9).state_dict(), assign=True)
        return nn.Sequential(
            ghost, nn.Linear(9, 9, device="meta").to_empty(device="cpu").requires_grad_(False)
        )

    plain, _, initial = both(make)
    assert torch.equal(initial("0.weight"), plain[0].weight)  # type: ignore[index]


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    _, initial = deferred.build(lambda: nn.Linear(9, 9), small=0)
    assert initial is not None
    with pytest.raises(KeyError, match="did you mean 'weight'"):
        initial("wight")


def test_a_mistake_in_a_constructor_is_that_of_a_plain_build() -> None:
    def make() -> nn.Module:
        nn.Linear(9, 9)(torch.ones(2, 8))
        raise AssertionError("not reached")

    with pytest.raises(RuntimeError) as plain:
        make()
    with pytest.raises(RuntimeError) as found:
        deferred.build(make, small=0)
    assert str(found.value) == str(plain.value)


def test_a_tensor_that_cannot_be_given_its_value_is_refused() -> None:
    import weakref

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.randn(9, 9)
            self.watch = weakref.ref(self.table)
            self.linear = nn.Linear(9, 9)

    with pytest.raises(ModelError, match=r"a tensor of shape \(9, 9\) outside of its parameters"):
        deferred.build(Watched, small=0)


def test_giving_memory_leaves_several_names_one_tensor() -> None:
    _, module, _ = both(Odd)
    assert isinstance(module, Odd)
    deferred.give_memory(module, torch.device("cpu"))
    assert module.head.weight is module.embedding.weight
    assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"cpu"}


class Deep(nn.Module):
    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1000, 1000) for _ in range(depth))
        for layer in self.layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)


def grown(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and by how many bytes it had the process grow at most."""
    Path("/proc/self/clear_refs").write_text("5")  # from now on

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    before = peak()
    return work(), peak() - before


def measured() -> tuple[int, int]:
    """In bytes: what building without memory holds at most, and then filling tensor by tensor."""
    libc, free_at_once = ctypes.CDLL(None), -3  # what is free goes back to the system: what is left is in use
    libc.mallopt(free_at_once, 1 << 20)
    deferred.build(lambda: Deep(1))
    (module, initial), building = grown(lambda: deferred.build(Deep))
    assert initial is not None
    _, filling = grown(lambda: [initial(name)[:1].clone() for name, _ in module.named_parameters()])
    return building, filling


def test_neither_building_nor_filling_holds_more_than_a_few_tensors() -> None:
    # In a process of its own: what others have left in this one's heap would be counted, or not.
    code = f"from {__name__} import measured; print(*measured())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    building, filling = map(int, done.stdout.split())
    one = 4 * 1000 * 1000  # of 20; a plain build of one takes 4 of them
    assert building < 10 * one
    assert filling < 5 * one
