"""What ranks of a sharded network do, in processes of their own; `on` starts them."""

from __future__ import annotations

import copy
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from ark.checkpoints.integrity import newest_intact, write_checkpoint
from ark.checkpoints.sealing import DamagedCheckpoint
from ark.checkpoints.shards import read_folder, write_folder
from ark.cycle import Cycle, Phase
from ark.distributed import ranks
from ark.distributed.sharding import average_whole, check_optimizer, clip_norm, shard
from ark.locks import Locks
from ark.module import ArkModule, BackboneConfig
from ark.optim import parameter_groups
from ark.pseudo import PseudoLabels
from ark.types import Batch, ConfigError, MultilabelTarget
from toys import SIZE, make_batch, make_task

TASK = "toy/multilabel"
NEAR = 3e-6  # of a gradient's length
GATHER, SCATTER = "_allgather_base_", "_reduce_scatter_base_"


def on(count: int, work: Callable[..., None], folder: Path, *args: Any) -> None:
    """Raises what a rank raises; a hang ends after a minute."""
    rendezvous = folder / f"rendezvous{len(list(folder.iterdir()))}"
    mp.spawn(_start, (count, work, folder, rendezvous, args), nprocs=count)


def _start(
    rank: int, count: int, work: Callable[..., None], folder: Path, rendezvous: Path, args: Any
) -> None:
    torch.set_num_threads(1)
    store, wait = f"file://{rendezvous}", timedelta(seconds=60)
    dist.init_process_group("gloo", store, wait, count, rank)
    work(folder, *args)
    dist.destroy_process_group()


def make_module() -> ArkModule:
    phase = Phase(task=TASK, steps=9)
    return ArkModule(
        [make_task("multilabel")],
        Cycle([phase], [9], cycles=1),
        SIZE,
        BackboneConfig("test_convnext"),
        pseudo_labels={"multilabel": PseudoLabels(low=0.0, high=0.01)},
    )


def sharded(module: ArkModule) -> ArkModule:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for network in (module.network, module.teacher.network):
        shard(network, mesh)
    module.locks = Locks(module.network)
    return module


def half(rank: int) -> Batch:
    batch = make_batch("multilabel", 4)
    here = slice(2 * rank, 2 * rank + 2)
    target = batch.target
    assert isinstance(target, MultilabelTarget)
    target = MultilabelTarget(target.labels[here], target.known[here])
    return replace(
        batch, images=batch.images[here], teacher_images=batch.images[here], target=target
    )


def run(module: ArkModule, batch: Batch) -> Tensor:
    _, output = module.network.run(TASK, batch.images)
    return output.square().mean()


def gradients(module: ArkModule) -> dict[str, Tensor]:
    named = module.network.named_parameters()
    return {name: ranks.whole(p.grad).clone() for name, p in named if p.grad is not None}


def lock(module: ArkModule, paths: list[str]) -> None:
    module.locks.apply([module.network.get_submodule(path) for path in paths])
    module.eval()  # dropout and BatchNorm aside
    for parameter in module.parameters():
        parameter.grad = None


# -- work of ranks --------------------------------------------------------------------------------


def locks_change(folder: Path) -> None:
    """The gradient is that of the whole batch, and what is locked is not reduced."""
    alone = make_module()
    module = sharded(copy.deepcopy(alone))
    units = [m for m in module.network.modules() if isinstance(m, FSDPModule)]
    assert len(units) > 2
    stem = ["backbone.model.stem", "backbone.model.stages.0"]
    for paths, scattered in (
        (["backbone"], 0),
        ([], len(units)),
        (stem, None),
        (["backbone"], 0),
        ([], len(units)),
    ):
        for one in (alone, module):
            lock(one, paths)
        for rank in range(2):
            (run(alone, half(rank)) / 2).backward()
        with CommDebugMode() as sent:
            run(module, half(dist.get_rank())).backward()
        counts = {str(op).rsplit(".", 1)[-1]: count for op, count in sent.get_comm_counts().items()}
        found = counts.get(SCATTER, 0)
        assert 0 < found < len(units) if scattered is None else found == scattered, (paths, counts)
        if paths == ["backbone"]:
            assert counts == {GATHER: len(units)}
        assert all(isinstance(p, DTensor) for p in module.network.backbone.parameters())
        average_whole(module.parameters())
        assert_same(gradients(alone), gradients(module))
        limit = 0.5 * float(torch.nn.utils.clip_grad_norm_(alone.network.parameters(), 1e9))
        torch.nn.utils.clip_grad_norm_(alone.network.parameters(), limit)
        clip_norm(module.network.parameters(), limit)
        assert_same(gradients(alone), gradients(module))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    expected, found = (torch.cat([g[n].double().flatten() for n in one]) for g in (one, other))
    assert (expected - found).norm() <= NEAR * expected.norm()


def teacher_moves(folder: Path) -> None:
    """Shard by shard, and nothing is sent."""
    alone = make_module()
    with torch.no_grad():
        for parameter in alone.network.parameters():
            parameter.add_(torch.randn_like(parameter))
    module = sharded(copy.deepcopy(alone))
    alone.teacher.update(alone.network, 0.3)
    with CommDebugMode() as sent:
        module.teacher.update(module.network, 0.3)
    assert sent.get_total_counts() == 0
    expected = alone.teacher.state_dict()
    for name, value in module.teacher.state_dict().items():
        assert torch.equal(ranks.whole(value), expected[name]), name


def one_rank_lacks_labels(folder: Path) -> None:
    """Its teacher is asked; those of the others must run too."""
    module, batch = sharded(make_module()), half(dist.get_rank())
    known = batch.target.known.all()
    assert bool(known) == (dist.get_rank() == 1)
    filled = module.target_of(batch, module.cycle.at(0))
    assert filled.known.all()
    assert known == (filled is batch.target)


def optimisers_step(folder: Path) -> None:
    """AdamW moves shards as it moves whole tensors; one call for both is refused."""
    alone = make_module()
    module = sharded(copy.deepcopy(alone))
    mixed = parameter_groups(module.network, 0.01, {}, 0.1)
    with pytest.raises(ConfigError, match=r"foreach=True .* model.lr_scale={'backbone': 1.0}"):
        check_optimizer(torch.optim.AdamW(mixed, foreach=True))
    for apart, options in (({}, {}), ({"backbone": 1.0}, {"foreach": True})):
        steps = []
        for one in (alone, module):
            groups = parameter_groups(one.network, 0.01, apart, 0.1)
            steps.append(torch.optim.AdamW(groups, eps=1e-3, **options))
            lock(one, [])
        check_optimizer(steps[1])
        for rank in range(2):
            (run(alone, half(rank)) / 2).backward()
        run(module, half(dist.get_rank())).backward()
        average_whole(module.parameters())
        for optimizer in steps:
            optimizer.step()
    for name, value in module.network.state_dict().items():
        expected = alone.network.state_dict()[name]
        torch.testing.assert_close(ranks.whole(value), expected, rtol=1e-4, atol=1e-5)


def steps(folder: Path) -> None:
    """All of them: to start processes takes longer than what they do."""
    for work in (locks_change, teacher_moves, one_rank_lacks_labels, optimisers_step):
        work(folder)


# -- folders of shards ----------------------------------------------------------------------------


def state(step: int) -> tuple[ArkModule, torch.optim.Optimizer]:
    """A module with an optimiser that made a step; the same on any number of ranks."""
    module = sharded(make_module())
    optimizer = torch.optim.AdamW(module.network.parameters())
    for parameter in module.network.parameters():
        parameter.grad = torch.full_like(parameter, float(step))
    optimizer.step()
    return module, optimizer


def checkpoint(step: int) -> dict[str, Any]:
    module, optimizer = state(step)
    saved = optimizer.state_dict()
    return {"global_step": step, "state_dict": module.state_dict(), "optimizer_states": [saved]}


def write(folder: Path) -> None:
    """`last.ckpt` of step 2 and `previous.ckpt` of step 1, both folders, after a file of step 0."""
    last = folder / "last.ckpt"
    if dist.get_rank() == 0:
        write_checkpoint({"global_step": 0}, last)
    for step in (1, 2):
        write_folder(checkpoint(step), last)
        assert newest_intact(folder) == last
        assert (folder / "previous.ckpt").is_dir() == (step == 2)
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with pytest.raises(ConfigError, match=r"cannot write last\.ckpt into"):
        write_folder(checkpoint(3), last)


def read(folder: Path, path: Path, step: int) -> None:
    expected = checkpoint(step)
    module, optimizer = state(step + 1)
    mine, parameters = module.state_dict(), optimizer.param_groups[0]["params"]

    def like(keys: list[str]) -> Tensor | None:
        return mine[keys[1]] if keys[0] == "state_dict" else parameters[int(keys[3])]

    found = read_folder(path, like)
    assert found["global_step"] == step
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():
        assert type(value) is type(found["state_dict"][key])
        assert torch.equal(ranks.whole(found["state_dict"][key]), ranks.whole(value)), key
    moments = found["optimizer_states"][0]["state"]
    for index, values in expected["optimizer_states"][0]["state"].items():
        for key, value in values.items():
            assert torch.equal(ranks.whole(moments[index][key]), ranks.whole(value)), key
    weights = read_folder(path, like, without=["optimizer_states"])
    assert not any(weights["optimizer_states"][0]["state"].values())


def read_damaged(folder: Path, path: Path) -> None:
    """Each rank reads its share of the files; all hear of it."""
    with pytest.raises(DamagedCheckpoint, match="does not have the checksum"):
        read_folder(path, lambda _: None)
