"""Tensors spread over ranks: written by those that hold them, read on any number of ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from stratrun.checkpoint import (
    Attempt,
    ShardReader,
    ShardWriter,
    SnapshotPlanner,
    Staging,
    StoredCheckpoint,
    layout,
)
from stratrun.checkpoint.skeleton import unflatten
from stratrun.checkpoint.tree import flatten
from stratrun.errors import CheckpointError
from stratrun.storage import Folder
from tests.checkpoints import save_tensors

PLACEMENTS = {
    "rows": Shard(0),
    "columns": Shard(1),
    "everywhere": Replicate(),
    "uneven": Shard(0),
    "one row": Shard(0),
}


def full_tensors():
    random = torch.Generator().manual_seed(3)
    shapes = {"rows": (8, 6), "columns": (4, 10), "everywhere": (3, 3), "uneven": (5, 2), "one row": (1, 4)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def spread(tensors):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(tensor, mesh, [PLACEMENTS[name]]) for name, tensor in tensors.items()}


def save(place, shared, own=None):
    """What the checkpointer does, on the default group."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    skeleton, tensors = flatten(shared)
    if rank:
        tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    mine, more = flatten(own, prefix=f"rank-{rank:05d}/")
    tensors |= more
    staging = Staging()
    staged = staging.take(tensors)
    for tensor in tensors.values():
        tensor.zero_()  # training goes on
    staging.wait()
    attempt = Attempt(Folder(place), 1, "run", "t0ken")
    writer, planner = attempt.writer(rank, world_size, mine), SnapshotPlanner(tensors, staged)
    plans = gathered(writer.prepare_local_plan(planner.create_local_plan()))
    metadata = None
    if rank == 0:
        plans, metadata = planner.create_global_plan(plans)
        plans = writer.prepare_global_plan(plans)
    plan = [None]
    dist.scatter_object_list(plan, plans if rank == 0 else None)
    results = gathered(writer.write_data(planner.finish_plan(plan[0]), planner).wait())
    if rank == 0:
        attempt.commit(metadata, results, {"shared": skeleton, "meta": {}})
    dist.barrier()


def gathered(value):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def save_spread(place):
    own = {"seed": torch.tensor([dist.get_rank() + 10]), "rank": dist.get_rank()}
    save(place, {"model": spread(full_tensors()), "plain": torch.arange(3.0)}, own)


def load_spread(place):
    template = {f"model/{name}": tensor for name, tensor in spread(zeros()).items()}
    loaded = StoredCheckpoint(Folder(place).child("step-00000001")).read(
        dist.get_rank(), dist.get_world_size(), template
    )
    for name, tensor in loaded.shared["model"].items():
        assert tensor is template[f"model/{name}"]
        assert torch.equal(tensor.full_tensor(), full_tensors()[name]), name
    return loaded.own, loaded.owns


def zeros():
    return {name: torch.zeros_like(tensor) for name, tensor in full_tensors().items()}


def test_what_two_ranks_hold_parts_of_one_process_loads_whole(two_ranks, tmp_path):
    two_ranks(save_spread, str(tmp_path))
    stored = StoredCheckpoint(Folder(tmp_path).child("step-00000001"))
    loaded = stored.read()
    assert loaded.shared.keys() == {"model", "plain"}
    assert all(torch.equal(loaded.shared["model"][name], full) for name, full in full_tensors().items())
    assert torch.equal(loaded.shared["plain"], torch.arange(3.0))
    assert loaded.own["rank"] == 0
    assert [(own["rank"], own["seed"].item()) for own in loaded.owns] == [(0, 10), (1, 11)]
    assert len([name for name in stored.folder.names() if layout.is_shard(name)]) == 2
    stored.verify()


def test_parts_go_to_the_ranks_that_hold_them_on_any_number(two_ranks, four_ranks, tmp_path):
    two_ranks(save_spread, str(tmp_path))
    assert [(own["rank"], owns) for own, owns in two_ranks(load_spread, str(tmp_path))] == [(0, []), (1, [])]
    found = four_ranks(load_spread, str(tmp_path))
    assert [own and own["rank"] for own, _ in found] == [0, 1, None, None]
    assert [[own["rank"] for own in owns] for _, owns in found] == [[0, 1]] * 4


def test_what_one_process_saved_whole_two_ranks_load_in_parts(two_ranks, tmp_path):
    save_tensors(Folder(tmp_path), {f"model/{name}": tensor for name, tensor in full_tensors().items()})
    two_ranks(load_from_whole, str(tmp_path))


def load_from_whole(place):
    stored = StoredCheckpoint(Folder(place).child("step-00000001"))
    template = {f"model/{name}": tensor for name, tensor in spread(zeros()).items()}
    for name, tensor in stored.read_tensors(template, template).items():
        assert torch.equal(tensor.full_tensor(), full_tensors()[name.removeprefix("model/")])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 7)
        self.norm = nn.BatchNorm1d(7)
        self.two = nn.Linear(7, 1)
        self.tied = self.two


def sharded_net():
    torch.manual_seed(0)
    net = Net()
    whole = copy.deepcopy(net.state_dict())
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return net, whole


def save_fsdp(place):
    net, whole = sharded_net()
    save(place, {"model": net.state_dict()})
    return {name: tensor.tolist() for name, tensor in whole.items()}


def load_fsdp(place):
    net, whole = sharded_net()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    template = flatten({"model": net.state_dict()})[1]
    stored = StoredCheckpoint(Folder(place).child("step-00000001"))
    loaded = unflatten(stored.skeleton, stored.read_tensors(stored.index.tensors, template))
    net.load_state_dict(loaded["model"])
    for name, tensor in net.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(full, whole[name]), name


def test_a_model_under_fully_shard_is_saved_by_its_shards_and_tied_weights_once(two_ranks, tmp_path):
    whole = two_ranks(save_fsdp, str(tmp_path))[0]
    stored = StoredCheckpoint(Folder(tmp_path).child("step-00000001"))
    model = stored.read().shared["model"]
    assert {name: tensor.tolist() for name, tensor in model.items()} == whole
    assert "model/tied.weight" not in stored.index.tensors
    assert model["tied.weight"] is model["two.weight"]
    net = Net()
    net.load_state_dict(model)
    two_ranks(load_fsdp, str(tmp_path))


def save_stock(place):
    state = {"model": spread(full_tensors()), "step": torch.tensor(4)}
    writer = Attempt(Folder(place), 1, "run", "t0ken").writer(dist.get_rank(), dist.get_world_size())
    dcp.save(state, storage_writer=writer, planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True))


def load_stock(place):
    state = {"model": spread(zeros()), "step": torch.tensor(0)}
    dcp.load(state, storage_reader=ShardReader(Folder(place).child("step-00000001")))
    for name, tensor in state["model"].items():
        assert torch.equal(tensor.full_tensor(), full_tensors()[name]), name
    assert state["step"] == 4


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_save_and_load_work_through_ours(two_ranks, tmp_path):
    two_ranks(save_stock, str(tmp_path))
    two_ranks(load_stock, str(tmp_path))
    state = {"model": zeros(), "step": torch.tensor(0)}
    dcp.load(state, storage_reader=ShardReader(Folder(tmp_path).child("step-00000001")))
    assert all(torch.equal(state["model"][name], full) for name, full in full_tensors().items())
    assert StoredCheckpoint(Folder(tmp_path).child("step-00000001")).read().shared["step"] == 4


def save_different(place):
    rank = dist.get_rank()
    state = {f"buffer {i}": torch.full((i + 1,), float(rank)) for i in range(6)}
    attempt = Attempt(Folder(place), 1, "run", "t0ken")
    writer = attempt.writer(rank, dist.get_world_size())
    dcp.save(state, storage_writer=writer, planner=SnapshotPlanner(state))


def test_what_should_be_equal_and_is_not_is_all_from_the_lowest_rank(two_ranks, tmp_path):
    two_ranks(save_different, str(tmp_path))
    shared = StoredCheckpoint(Folder(tmp_path).child("step-00000001")).read().shared
    assert {name: set(tensor.tolist()) for name, tensor in shared.items()} == {name: {0.0} for name in shared}
    assert len(shared) == 6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("value", [3, "text", {"a"}, None], ids=repr)
def test_a_value_that_is_no_tensor_is_refused_by_name_before_anything_is_written(value, tmp_path):
    writer = Attempt(Folder(tmp_path), 1, "run", "t0ken").writer()
    with pytest.raises((CheckpointError, dcp.api.CheckpointException), match=r"'hyper\.rate' is no tensor"):
        dcp.save({"w": torch.ones(2), "hyper": {"rate": value}}, storage_writer=writer, no_dist=True)
    assert Folder(tmp_path).names() == []


def test_a_dtype_that_files_lack_is_refused_by_name_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"'w' is of dtype torch\.complex128"):
        save_tensors(Folder(tmp_path), {"w": torch.ones(2, dtype=torch.complex128)})
    assert Folder(tmp_path).names() == []


def test_a_writer_alone_does_not_commit_and_neither_takes_another_place(tmp_path):
    writer = ShardWriter(Folder(tmp_path))
    with pytest.raises(CheckpointError, match=r"only writes files; Attempt\.writer gives one"):
        writer.finish(None, [])
    with pytest.raises(CheckpointError, match="checkpoint_id='elsewhere' has no meaning"):
        writer.reset("elsewhere")
    save_tensors(Folder(tmp_path), {"w": torch.ones(2)})
    with pytest.raises(CheckpointError, match="checkpoint_id='elsewhere' has no meaning"):
        ShardReader(Folder(tmp_path).child("step-00000001")).reset("elsewhere")
