"""Compiling block by block: one graph for all that are alike, and what it costs is told."""

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from stratrun.blocks import BlockTransforms
from stratrun.errors import ConfigError

WIDTH = 4


class Block(nn.Module):
    """What repeats, with a buffer that it writes to."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.layer, self.drop = nn.BatchNorm1d(width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.tanh(self.layer(self.norm(x))))


class Numbered(Block):
    """A block that differs from its siblings by a number."""

    number = 0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.number


class Net(nn.Module):
    """An embedding, and blocks in a list."""

    def __init__(self, blocks: int = 4, kind: type[Block] = Block) -> None:
        super().__init__()
        self.embed = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(kind() for _ in range(blocks))
        for number, block in enumerate(self.blocks):
            block.number = number + 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


class Graphs:
    """A backend that keeps the graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.seen: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, example_inputs: Any) -> Any:
        self.seen.append(graph)
        return graph


def net(**options: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**options)


def compiled(model: nn.Module, recompute: Any = None, **options: Any) -> tuple[BlockTransforms, Graphs]:
    graphs = Graphs()
    transforms = BlockTransforms({"backend": graphs, **options}, recompute)
    transforms(model)
    return transforms, graphs


def steps(model: nn.Module, rows: tuple[int, ...] = (6, 6, 5, 6)) -> dict[str, Tensor]:
    """Weights and buffers after an update for each number of rows."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for count in rows:
        model(torch.randn(count, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_all_blocks_share_one_graph_of_their_own_code_alone() -> None:
    model = net()
    transforms, graphs = compiled(model)
    torch.testing.assert_close(steps(model, rows=(6, 6)), steps(net(), rows=(6, 6)))
    assert len(graphs.seen) == 1
    assert graphs_come_from(graphs) == {"test_blocks_compiled.py"}
    told = transforms.compilations
    assert told is not None
    told.look()
    assert (told.graphs, told.breaks, dict(told.recompiles)) == (1, 0, {})
    assert told.describe().startswith("compile: 1 graph in ")


def graphs_come_from(graphs: Graphs) -> set[str]:
    """The files, outside of torch, whose lines the graphs were traced from."""
    found = set()
    for graph in graphs.seen:
        for node in graph.graph.nodes:
            lines = [
                line for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")
            ]
            paths = [line.split('"')[1] for line in lines]
            found |= {path.rpartition("/")[2] for path in paths if "/torch/nn/" not in path}
    return found


def test_names_stay_and_copies_are_compiled_like_it() -> None:
    model = net()
    _, graphs = compiled(model)
    assert model.state_dict().keys() == net().state_dict().keys()
    assert inspect.signature(model.blocks[0].forward) == inspect.signature(Block().forward)
    copied = copy.deepcopy(model)
    truth = steps(net())
    for made in (model, copied):
        torch.testing.assert_close(steps(made), truth)
    assert len(graphs.seen) == 2  # and another for the batch of 5 rows
    torch.testing.assert_close(steps(pickle.loads(pickle.dumps(copy.deepcopy(net())))), truth)


def test_recompiles_are_counted_and_say_what_for() -> None:
    model = net()
    transforms, _ = compiled(model, dynamic=False)
    steps(model)
    with torch.no_grad():
        model(torch.randn(6, 2))
    told = transforms.compilations
    assert told is not None
    told.look()
    assert told.recompiles == {"Block.forward": 2}
    text = told.describe()
    assert "compile: 3 graphs in" in text
    assert (
        "Block.forward compiled 2 times more: tensor 'x' size mismatch at index 0. expected 6, actual 5"
        in text
    )
    assert "grad_mode" in text


def test_recompiling_that_goes_on_is_warned_of_by_its_reason() -> None:
    model = net(blocks=7, kind=Numbered)
    transforms, _ = compiled(model)
    steps(model, rows=(6,))
    told = transforms.compilations
    assert told is not None
    with pytest.warns(UserWarning, match=r"Numbered.forward was compiled 6 times.* because of .*number"):
        told.look()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.look()


def test_blocks_of_other_shapes_and_earlier_runs_do_not_use_up_the_tries() -> None:
    for _ in range(5):
        model = net()
        model.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, w), Block(w), nn.Linear(w, WIDTH)) for w in (2, 3)
        )
        transforms, graphs = compiled(model, blocks="Block")
        steps(model, rows=(6,))
        assert len(graphs.seen) == 2
        assert transforms.compilations is not None
        transforms.compilations.look()
        assert not transforms.compilations.recompiles


def test_a_break_between_graphs_is_counted() -> None:
    class Breaking(Block):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    model = net(kind=Breaking)
    transforms, _ = compiled(model)
    steps(model, rows=(6,))
    assert transforms.compilations is not None
    transforms.compilations.look()
    assert transforms.compilations.breaks == 1


def test_compiled_and_recomputed_blocks_give_the_same_numbers() -> None:
    rows = (6, 6)
    truth = steps(net(blocks=2), rows)
    for spec in ("Block", {"every": 2}, "blocks.*.layer"):
        model = net(blocks=2)
        compiled(model, spec)
        torch.testing.assert_close(steps(model, rows), truth)
    model = net(blocks=2)
    transforms, _ = compiled(model, "Block", blocks=False, backend="aot_eager")
    torch.testing.assert_close(steps(model, rows), truth)  # recomputed within the one graph
    assert transforms.compilations is not None
    transforms.compilations.look()
    assert (transforms.compilations.graphs, transforms.compilations.breaks) == (1, 0)


def test_without_blocks_the_model_is_compiled_as_a_whole_or_what_its_steps_call() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    transforms, graphs = compiled(model)
    assert transforms.reasons[0].startswith("compile=the whole Sequential: backend=")
    model(torch.randn(3, 2))
    assert len(graphs.seen) == 1

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.drop = nn.Linear(2, 2), nn.Linear(2, 2), nn.Dropout()

        def train_step(self, batch: Tensor) -> Tensor:
            return self.other(self.one(batch)).sum()

    pair = Pair()
    transforms, graphs = compiled(pair)
    assert transforms.reasons[0].startswith("compile=2 Linear")
    pair.train_step(torch.randn(3, 2))
    assert graphs.seen


def test_it_is_told_where_nothing_was_compiled() -> None:
    transforms, _ = compiled(net())
    assert transforms.compilations is not None
    assert "nothing was compiled" in transforms.compilations.describe()


def test_an_error_of_the_compiler_says_what_it_was_at() -> None:
    def broken(graph: fx.GraphModule, example_inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    model = net()
    BlockTransforms({"backend": broken})(model)
    with pytest.raises(Exception, match="no such instruction") as caught:
        model(torch.randn(6, 2))
    assert "while compiling the forward of Block" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Block", r"compile='Block' must be True, or a dict of blocks, backend, .* such as dict\(blocks="),
        ({"mod": "default"}, "compile: 'mod' is not known; did you mean 'mode'?"),
        (
            {"mode": "max-autotun"},
            "mode='max-autotun' is none of torch.compile; did you mean 'max-autotune'?",
        ),
        ({"backend": "inducto"}, "backend='inducto' is none of torch.compile; did you mean 'inductor'?"),
        ({"backend": "aot_eager", "mode": "default"}, "mode='default' is for backend='inductor'"),
        ({"dynamic": "yes"}, "dynamic='yes' must be True or False"),
        ({"blocks": 3}, "compile: blocks=3 says of no blocks which"),
    ],
)
def test_what_torch_would_not_take_is_refused_before_there_is_a_model(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BlockTransforms(given)
