"""What every rank does; each scenario returns a profile, an error as text, or None."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from attncheck import HeadProfile, gather_profiles, profile_dataset, profile_model
from tests.distributed.models import HEADS, Decoder, batches, on_whole_tensors, parallelized

Found = HeadProfile | str | None


def shard(rank: int, ranks: int) -> list[Any]:
    """Batches of one rank; the last of several has none."""
    busy = max(1, ranks - 1)
    return [] if rank == busy else batches()[rank::busy]


def whole(rank: int, world: int) -> Found:
    profiles = [profile_model(Decoder(), **batch) for batch in shard(rank, world)]
    return gather_profiles(HeadProfile.merged(profiles) if profiles else None)


def one_rank_only(rank: int, world: int) -> Found:
    return gather_profiles(profile_model(Decoder(), **batches()[rank]), dst=1)


def streamed(rank: int, world: int) -> Found:
    return profile_dataset(Decoder(), shard(rank, world), gather=True)


def other_layers(rank: int, world: int) -> Found:
    model = Decoder(layers=3 if rank == world - 1 else 2)
    return gather_profiles(profile_model(model, **batches()[0]))


def nobody(rank: int, world: int) -> Found:
    return gather_profiles(None)


def no_profile(rank: int, world: int) -> Found:
    held: Any = {"entropy": 1.0} if rank == 1 else profile_model(Decoder(), **batches()[0])
    return gather_profiles(held)


def one_fails(rank: int, world: int) -> Found:
    broken: list[Any] = [batches()[0], {"input_ids": torch.ones(1, 9)}]
    return profile_dataset(Decoder(), broken if rank == 1 else batches(), gather=True)


def heads(rank: int, world: int) -> Found:
    mesh = init_device_mesh("cpu", (world,))
    part = profile_model(parallelized(Decoder(), mesh), **batches()[3])
    return gather_profiles(part, mesh, over="heads")


def divided_tensors(rank: int, world: int, way: str) -> Found:
    mesh = init_device_mesh("cpu", (world,))
    model = parallelized(on_whole_tensors(way), mesh, local=False)
    part = profile_model(model, batches()[3]["input_ids"])
    share = HEADS // world
    assert part.layers[1].heads == tuple(range(rank * share, (rank + 1) * share))
    return gather_profiles(part, mesh, over="heads")


def divided_sdpa(rank: int, world: int) -> Found:
    return divided_tensors(rank, world, "sdpa")


def divided_softmax(rank: int, world: int) -> Found:
    return divided_tensors(rank, world, "softmax")


def divided_queries(rank: int, world: int) -> Found:
    """Attention whose rows lie on several ranks."""
    mesh = init_device_mesh("cpu", (world,))

    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query = distribute_tensor(x, mesh, [Shard(2)])
            key = distribute_tensor(x, mesh)
            return torch.softmax(query @ key.transpose(-1, -2), -1) @ key

    return profile_model(Rows(), torch.ones(1, 2, 8, 4))


def undivided(rank: int, world: int) -> Found:
    return gather_profiles(profile_model(Decoder(), **batches()[0]), over="heads")


def heads_of_other_input(rank: int, world: int) -> Found:
    return gather_profiles(profile_model(Decoder(), **batches()[rank]), over="heads")


def heads_and_batches(rank: int, world: int) -> Found:
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelized(Decoder(), mesh["tensor"])
    mine = batches()[mesh["data"].get_local_rank() :: world // 2]
    part = profile_dataset(model, mine)
    return gather_profiles(gather_profiles(part, mesh["tensor"], over="heads"), mesh["data"])


SCENARIOS: dict[str, Callable[[int, int], Found]] = {
    found.__name__: found
    for found in (
        whole,
        one_rank_only,
        streamed,
        other_layers,
        nobody,
        no_profile,
        one_fails,
        heads,
        divided_sdpa,
        divided_softmax,
        divided_queries,
        undivided,
        heads_of_other_input,
        heads_and_batches,
    )
}


def run(rank: int, world: int, folder: Path) -> None:
    """Play every scenario and write what came of it."""
    torch.set_num_threads(1)
    for name, scenario in SCENARIOS.items():
        try:
            found = scenario(rank, world)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        held = found.to_dict() if isinstance(found, HeadProfile) else found
        (folder / f"{name}.{rank}.json").write_text(json.dumps(held))


def spawned(rank: int, world: int, folder: Path) -> None:
    """One of several processes on this machine, met through a file."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )
    run(rank, world, folder)
    dist.destroy_process_group()
