"""Compiled and recomputed blocks under every strategy: the same training, with nothing of ours in a graph."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from stratrun import Runner
from tests.problems import CLASSES, FEATURES, points
from tests.ranks import Ranks

WIDTH, SAMPLES, BATCH = 6, 32, 4


class Block(nn.Module):
    """What repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(self.norm(x)))


class Net(nn.Module):
    """A classifier of points with blocks in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def plain() -> dict[str, Tensor]:
    """One process, eagerly, in batches of what all ranks take at once."""
    model, (inputs, targets) = net(), points(SAMPLES).tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(2):
        for start in range(0, SAMPLES, 2 * BATCH):
            part = slice(start, start + 2 * BATCH)
            cross_entropy(model(inputs[part]), targets[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return dict(model.state_dict())


class Graphs:
    """A backend that keeps the graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.seen: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, example_inputs: Any) -> Any:
        self.seen.append(graph)
        return graph

    def sources(self) -> set[str]:
        """The files that they were traced from, without those of torch's layers."""
        traces = [node.stack_trace or "" for graph in self.seen for node in graph.graph.nodes]
        paths = [line.split('"')[1] for t in traces for line in t.splitlines() if 'File "' in line]
        return {path.rpartition("/")[2] for path in paths if "/torch/nn/modules/" not in path}

    def operations(self) -> set[str]:
        nodes = [node for graph in self.seen for node in graph.graph.nodes]
        return {getattr(node.target, "__name__", str(node.target)) for node in nodes if "call" in node.op}


def run(work_dir: str, recompute: Any = False, compiles: bool = True, **options: Any) -> dict[str, Any]:
    graphs = Graphs()
    form: dict[str, Any] = {
        "loss": "cross_entropy",
        "train_dataloader": {"dataset": points(SAMPLES), "batch_size": BATCH, "shuffle": False},
        "train_cfg": {"max_epochs": 2},
        "optimizer": {"type": "AdamW", "lr": 0.05},
        "clip_grad": 0.5,
        "compile": {"backend": graphs} if compiles else False,
        "activation_checkpointing": recompute,
        "work_dir": work_dir,
        "loggers": (),
        "default_hooks": {"checkpoint": None},
    }
    runner = Runner(net(), **{**form, **options})
    runner.train()
    weights = {name: _whole(value) for name, value in runner.model.state_dict().items()}
    told = runner.compilations
    runner.close()
    return {
        "weights": weights,
        "sources": graphs.sources(),
        "operations": graphs.operations(),
        "counts": None if told is None else (told.graphs, told.breaks, dict(told.recompiles)),
        "reasons": runner.reasons,
    }


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole.detach().clone()


def assert_compiled(found: dict[str, Any], graphs: int = 1) -> None:
    """One graph for all blocks, of the lines of the block alone: no hook, no exchange, no step of ours."""
    assert found["counts"] == (graphs, 0, {"Block.forward": graphs - 1} if graphs > 1 else {})
    assert found["sources"] == {"test_compiled.py"}
    assert found["operations"] == {"layer_norm", "linear", "tanh", "add"}


def compiled_and_both(work_dir: str, strategy: str) -> list[dict[str, Any]]:
    """The second with averages that are evaluated, for which blocks are compiled once more."""
    validation = {
        "val_dataloader": {"dataset": points(2 * BATCH), "batch_size": BATCH},
        "val_evaluator": {"type": "Accuracy"},
        "custom_hooks": [{"type": "EMAHook"}],
    }
    return [
        run(f"{work_dir}/once", strategy=strategy),
        run(f"{work_dir}/both", strategy=strategy, recompute={"every": 2}, **validation),
    ]


def test_one_process_trains_alike_compiled_recomputed_and_both(tmp_path: Any) -> None:
    truth = plain()
    loader = {"dataset": points(SAMPLES), "batch_size": 2 * BATCH, "shuffle": False}
    for compiles, recompute in ((True, False), (False, True), (True, {"every": 2})):
        found = run(str(tmp_path), recompute, compiles, train_dataloader=loader)
        torch.testing.assert_close(found["weights"], truth, rtol=1e-5, atol=1e-6)
        if compiles:
            assert_compiled(found)
    # What is told of optimizers comes after what was done to the model.
    assert found["reasons"][-3:] == [
        "compile=3 Block: backend=Graphs",
        "activation_checkpointing=2 Block: computed again on the way back",
        "optimizer: AdamW, fused",
    ]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_alike_with_nothing_of_a_strategy_in_the_graph(
    strategy: str, two_ranks: Ranks, tmp_path: Any
) -> None:
    truth = plain()
    for once, both in two_ranks(compiled_and_both, str(tmp_path), strategy):
        for one in (once, both):
            torch.testing.assert_close(one["weights"], truth, rtol=1e-5, atol=1e-6)
        assert_compiled(once)
        assert_compiled(both, graphs=2)  # one of them without gradients


def fully_sharded() -> tuple[dict[str, Tensor], Any]:
    """By torch's own means, around blocks that have got their forward already."""
    from torch.distributed.fsdp import fully_shard

    from stratrun.blocks import BlockTransforms

    rank = torch.distributed.get_rank()
    model, (inputs, targets), graphs = net(), points(SAMPLES).tensors, Graphs()
    transforms = BlockTransforms({"backend": graphs}, {"every": 2})
    transforms(model)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(2):
        for start in range(rank, SAMPLES, 2 * BATCH):
            part = slice(start, start + 2 * BATCH, 2)
            cross_entropy(model(inputs[part]), targets[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    told = transforms.compilations
    assert told is not None
    told.look()
    state = {name: _whole(value) for name, value in model.state_dict().items()}
    counts = told.graphs, told.breaks, dict(told.recompiles)
    return state, {"counts": counts, "sources": graphs.sources(), "operations": graphs.operations()}


def test_sharding_stays_out_of_the_graph(two_ranks: Ranks) -> None:
    for weights, found in two_ranks(fully_sharded):
        torch.testing.assert_close(weights, plain(), rtol=1e-5, atol=1e-6)
        assert_compiled(found)
